"""The servers of `bench_services.py`: verifiers that do nothing, and a bare echo over one stream, which runs as a program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from burnish.rewards.types import RewardInput
from burnish.rewards.verifier_service import verifier
from burnish.v1 import verifier_pb2

ECHO = "/burnish.bench.Echo/Stream"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@verifier("burnish-bench/nothing-v1")
async def nothing(episode: RewardInput) -> float:
    return episode.env_reward


@verifier("burnish-bench/sync-nothing-v1")
def sync_nothing(episode: RewardInput) -> float:
    return episode.env_reward


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
    asyncio.run(serve())
