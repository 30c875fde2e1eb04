"""The servers of `bench_services.py`: verifiers and an environment that do nothing, and a bare echo over one stream.

`python -m benchmarks.echo_server` serves the echo, `python -m benchmarks.echo_server THREADS` the environment (0: on the event loop).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import gymnasium
from benchmarks.measuring import TEXT

from burnish.envs.contract import Observation, register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import Message
from burnish.hosting.services import serve_environment
from burnish.rewards.remote.service import verifier
from burnish.rewards.types import RewardInput
from burnish.v1 import verifier_pb2

ECHO = "/burnish.bench.Echo/Stream"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@verifier("burnish-bench/nothing-v1")
async def nothing(episode: RewardInput) -> float:
    return episode.env_reward


@verifier("burnish-bench/sync-nothing-v1")
def sync_nothing(episode: RewardInput) -> float:
    return episode.env_reward


@register_env("burnish-bench/Nothing-v0")
class Nothing(gymnasium.Env[Observation, str]):
    """Answers a text."""

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        return (Message("user", TEXT),), {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return (Message("user", TEXT),), 1.0, False, False, {}


async def echo(requests: AsyncIterator[Any], context: Any) -> None:
    """Answers a batch with a batch, and does nothing else: no deadlines, no cancellation, no errors, no types."""
    async for batch in requests:
        results = [
            verifier_pb2.VerifyResult(request_id=item.request_id, response=verifier_pb2.VerifyResponse(score=item.request.env_reward))
            for item in batch.items
        ]
        await context.write(verifier_pb2.VerifyStreamResponse(results=results))


async def serve() -> None:
    service, method = ECHO.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(
        echo,
        request_deserializer=verifier_pb2.VerifyStreamRequest.FromString,
        response_serializer=verifier_pb2.VerifyStreamResponse.SerializeToString,
    )
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve_environment("burnish-bench/Nothing-v0", threads=int(sys.argv[1]), on_ready=lambda address, _: print(address, flush=True))
    else:
        asyncio.run(serve())
