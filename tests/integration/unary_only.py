"""A verifier server as another language might have it: unary calls only, no health, no reflection. Prints its port."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc

from burnish.v1 import verifier_pb2


class Unary:
    """data_json says what to do: "" scores, "wait" waits until cancelled and then says so on the next call, "busy" refuses twice."""

    def __init__(self) -> None:
        self.waited = 0
        self.cancelled = 0
        self.refused = 0

    async def Verify(self, request: verifier_pb2.VerifyRequest, context: Any) -> verifier_pb2.VerifyResponse:
        if "wait" in request.data_json:
            self.waited += 1
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if "busy" in request.data_json and self.refused < 2:
            self.refused += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "come back later")
        return verifier_pb2.VerifyResponse(
            score=request.env_reward, parts={"waited": self.waited, "cancelled": self.cancelled, "refused": self.refused}
        )


async def main() -> None:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        Unary().Verify,
        request_deserializer=verifier_pb2.VerifyRequest.FromString,
        response_serializer=verifier_pb2.VerifyResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("burnish.v1.VerifierService", {"Verify": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
