"""What a verifier service adds to a bare gRPC stream: steps per second of both, in one run.

`make bench` runs it (about two minutes) and writes `docs/services-performance.md`. `python benchmarks/bench_services.py` only prints.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from burnish.envs.types import Message, Task
from burnish.rewards.remote import RemoteVerifier
from burnish.rewards.types import RewardInput
from burnish.rewards.wire import to_request
from burnish.services import ServiceProcess
from burnish.v1 import common_pb2, verifier_pb2, verifier_pb2_grpc

pytestmark = pytest.mark.slow

SERVERS = Path(__file__).with_name("echo_server.py")
ECHO = "/burnish.bench.Echo/Stream"
TABLE = Path("docs/services-performance.md")
EPISODES = (64, 512, 2048)
ROUNDS = 3
STEPS = 16_384  # of one measurement
UNARY_STEPS = 4096
DEADLINE_S = 60.0
BAR = 0.5
TEXT = ("Inspect part 17: the bore is 12.04 mm, the limit 12.05 mm, so it passes; the flange is 3.98 mm. " * 3)[:230]
EPISODE = RewardInput("bench-0/0", Task("bench-0", 0), (Message("assistant", TEXT),), 1.0)

Step = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """rate: steps per second. p50, p99: milliseconds of a step. lost: steps without the right answer."""

    rate: float
    p50: float
    p99: float
    lost: int


async def measure(step: Step, episodes: int, steps: int) -> Measured:
    """Run `steps` in all, in `episodes` concurrent episodes that each wait for one step before the next."""
    seconds: list[float] = []
    lost = 0

    async def episode() -> None:
        nonlocal lost
        for _ in range(steps // episodes):
            begin = time.perf_counter()
            lost += await step() != 1.0
            seconds.append(time.perf_counter() - begin)

    for _ in range(20):
        await step()
    begin = time.perf_counter()
    await asyncio.gather(*(episode() for _ in range(episodes)))
    took = time.perf_counter() - begin
    cuts = statistics.quantiles(seconds, n=100)
    return Measured(len(seconds) / took, cuts[49] * 1e3, cuts[98] * 1e3, lost)


@contextmanager
def echo_server() -> Iterator[str]:
    with subprocess.Popen([sys.executable, str(SERVERS)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class BareEcho:
    """The client of the echo: one stream, whatever is ready travels together, and nothing else."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        open_stream: Any = channel.stream_stream(
            ECHO,
            request_serializer=verifier_pb2.VerifyStreamRequest.SerializeToString,
            response_deserializer=verifier_pb2.VerifyStreamResponse.FromString,
        )
        self._call = open_stream()
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._outbox: list[verifier_pb2.VerifyItem] = []
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def step(self) -> float:
        """One request of one message, made for this step, and the number in its answer."""
        request_id = str(next(self._ids))
        answer = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        message = common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, text=TEXT)
        request = verifier_pb2.VerifyRequest(episode_id="bench-0/0", task=common_pb2.Task(id="bench-0"), messages=[message], env_reward=1.0)
        self._outbox.append(verifier_pb2.VerifyItem(request_id=request_id, request=request))
        self._wake.set()
        return await answer

    def close(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)
            batch, self._outbox = self._outbox, []
            await self._call.write(verifier_pb2.VerifyStreamRequest(items=batch))

    async def _read(self) -> None:
        async for message in self._call:
            for result in message.results:
                self._waiting.pop(result.request_id).set_result(result.response.score)


async def echo(address: str, episodes: int) -> Measured:
    async with grpc.aio.insecure_channel(address, options=(("grpc.max_receive_message_length", -1),)) as channel:
        bare = BareEcho(channel)
        try:
            return await measure(bare.step, episodes, STEPS)
        finally:
            bare.close()


async def stream(address: str, episodes: int) -> Measured:
    remote = RemoteVerifier("nothing", address, deadline_s=DEADLINE_S)

    async def step() -> float:
        return (await remote.score(EPISODE)).value

    return await measure(step, episodes, STEPS)


async def unary(address: str, episodes: int) -> Measured:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)

        async def step() -> float:
            return (await stub.Verify(to_request(EPISODE), timeout=DEADLINE_S)).score

        return await measure(step, episodes, UNARY_STEPS)


CLIENTS = {"echo": echo, "stream": stream, "unary": unary}


def in_own_process(client: str, address: str, episodes: int) -> Measured:
    """Run one client in a process of its own: event loops in one process would share gRPC's poller, and slow each other down."""
    command = [sys.executable, __file__, client, address, str(episodes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S * 2, check=True)
    return Measured(**json.loads(done.stdout))


def run_all() -> dict[tuple[str, int], list[Measured]]:
    """Every way at every number of episodes, in rounds so that whatever else the machine does meets all of them alike."""
    found: dict[tuple[str, int], list[Measured]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bare = stack.enter_context(echo_server())
        names = {"async": "nothing", "sync": "sync_nothing"}
        addresses = {
            kind: stack.enter_context(ServiceProcess("verifier", f"{SERVERS}:{name}", Path(folder) / f"{kind}.log")).address
            for kind, name in names.items()
        }
        for episodes in EPISODES:
            for _ in range(ROUNDS):
                found.setdefault(("echo", episodes), []).append(in_own_process("echo", bare, episodes))
                for kind, address in addresses.items():
                    found.setdefault((kind, episodes), []).append(in_own_process("stream", address, episodes))
            found["unary", episodes] = [in_own_process("unary", addresses["async"], episodes)]
    return found


def ratio(found: dict[tuple[str, int], list[Measured]], kind: str, episodes: int) -> float:
    """Median over the rounds of what a kind reaches of the echo beside it."""
    pairs = zip(found[kind, episodes], found["echo", episodes], strict=False)
    return statistics.median(own.rate / echo.rate for own, echo in pairs)


NAMES = {"echo": "bare echo", "async": "verifier, async handler", "sync": "verifier, sync handler", "unary": "verifier, unary calls"}


def lines(found: dict[tuple[str, int], list[Measured]]) -> list[str]:
    rows = []
    for (kind, episodes), rounds in sorted(found.items(), key=lambda item: (item[0][1], list(NAMES).index(item[0][0]))):
        best = sorted(rounds, key=lambda one: one.rate)[len(rounds) // 2]
        rows.append(
            f"| {episodes:,} | {NAMES[kind]} | {best.rate:,.0f} | {ratio(found, kind, episodes):.2f} | {best.p50:.1f} | {best.p99:.1f} "
            f"| {sum(one.lost for one in rounds)} |"
        )
    return rows


def test_the_verifier_service_reaches_half_of_a_bare_echo() -> None:
    found = run_all()
    write_table(found)
    for (kind, episodes), rounds in found.items():
        assert sum(one.lost for one in rounds) == 0, (kind, episodes)
    assert {episodes: ratio(found, "async", episodes) >= BAR for episodes in EPISODES} == dict.fromkeys(EPISODES, True)


def write_table(found: dict[tuple[str, int], list[Measured]]) -> None:
    load = os.getloadavg()[0]
    text = f"""# How fast services are

`make bench` wrote this page, on {os.cpu_count()} cores with a load of {load:.1f} (this benchmark alone makes about 2). A step is one
verification of an episode of one message of {len(TEXT)} bytes; an episode makes one step after the other. The verifiers return at once, so
what is measured is the way there and back.

The bare echo is a grpc.aio server and client of their own that send what is ready in one message over one stream, and do nothing else: no
deadlines, cancellation, typed errors, replicas, or conversion to and from the types that users see. "Of echo" is the median over
{ROUNDS} rounds of the rate beside the echo's in the same round. Milliseconds and rates are those of the median round. Lost are steps
without the right answer.

| episodes | way | steps/s | of echo | p50 ms | p99 ms | lost |
|---|---|---|---|---|---|---|
{chr(10).join(lines(found))}

A sync handler runs in one of 32 threads, so each step crosses threads twice. Unary calls are for other languages and by hand; burnish
itself makes them only to servers without the stream.
"""
    TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(asdict(asyncio.run(CLIENTS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))))
    else:
        print("\n".join(lines(run_all())))
