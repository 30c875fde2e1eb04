"""Calls per second of one verifier service in a process of its own: unary against the batched stream.

    python benchmarks/rpc_stream.py [CALLS]

Prints one line per way and number of callers at a time.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from burnish.envs.types import Message, Task
from burnish.rewards.types import RewardInput
from burnish.rewards.verifier_service import verifier
from burnish.rewards.wire import to_request
from burnish.rpc.background import background
from burnish.rpc.client import BatchedClient
from burnish.rpc.methods import VERIFY
from burnish.services import ServiceProcess
from burnish.v1 import verifier_pb2_grpc

TIMEOUT_S = 120.0
UNARY_CALLERS = 256  # with a thousand unary calls at a time calls have been seen to end as CANCELLED, for a cause not yet found
REQUEST = to_request(RewardInput("bench-0/0", Task("bench-0", 0), (Message("user", "Inspect part 17."), Message("assistant", "pass")), 1.0))


@verifier("burnish-bench/echo-v1")
async def echo(episode: RewardInput) -> float:
    return episode.env_reward


async def rate(call: Callable[[], Awaitable[object]], calls: int, callers: int) -> float:
    """Calls per second with `callers` of them at a time."""

    async def caller() -> None:
        for _ in range(calls // callers):
            await call()

    await call()
    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (calls // callers) * callers / (time.perf_counter() - start)


async def measure(address: str, calls: int) -> None:
    client = BatchedClient(address, VERIFY)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        for callers in (1, 64, 256, 1024):
            if callers <= UNARY_CALLERS:
                unary = await rate(lambda: stub.Verify(REQUEST, timeout=TIMEOUT_S), calls, callers)
                print(f"{callers:5d} callers: unary  {unary:7.0f}/s", flush=True)
            before = client.counts().batches_sent
            stream = await rate(lambda: client.call(REQUEST, TIMEOUT_S), calls, callers)
            items = calls / max(client.counts().batches_sent - before, 1)
            print(f"{callers:5d} callers: stream {stream:7.0f}/s, {items:.1f} items per batch", flush=True)


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder, ServiceProcess("verifier", f"{__file__}:echo", Path(folder) / "log") as service:
        background().run(measure(service.address, calls), 600.0)


if __name__ == "__main__":
    main()
