"""The same verifier behind Ray Serve's own gRPC ingress: unary calls, on a Ray cluster that Serve manages.

VERIFIER_TOKEN=… python -m examples.verifier.ray_serve 50051

Serve's ingress listens on every address of the machine, and asks nobody who it is: so the verifier does.
"""

import hmac
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import ray
from examples.verifier.short_answer import short_answer
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.grpc_util import RayServegRPCContext

from burnish.rewards.remote.wire import from_request, to_response
from burnish.rewards.types import InvalidScore
from burnish.rpc.methods import CONTRACT
from burnish.rpc.security import read_token
from burnish.v1 import verifier_pb2

ADD_TO_SERVER = "burnish.v1.verifier_pb2_grpc.add_VerifierServiceServicer_to_server"


class ShortAnswer:
    """Serve calls the method that a gRPC call names. token: that every call must carry."""

    def __init__(self, token: str) -> None:
        self._sent = f"Bearer {token}"

    def check(self, context: RayServegRPCContext) -> None:
        given = dict(context.invocation_metadata()).get("authorization", "")
        if not hmac.compare_digest(given.encode(), self._sent.encode()):
            context.set_code(grpc.StatusCode.UNAUTHENTICATED)
            context.set_details("the token is wrong")
            raise PermissionError("a call without the token")

    def Describe(
        self, request: verifier_pb2.DescribeVerifiersRequest, grpc_context: RayServegRPCContext
    ) -> verifier_pb2.DescribeVerifiersResponse:
        self.check(grpc_context)
        info = verifier_pb2.VerifierInfo(id=short_answer.id, description=short_answer.description)
        return verifier_pb2.DescribeVerifiersResponse(contract=CONTRACT, server_version="Ray Serve", verifiers=[info])

    def Verify(self, request: verifier_pb2.VerifyRequest, grpc_context: RayServegRPCContext) -> verifier_pb2.VerifyResponse:
        self.check(grpc_context)
        try:
            return to_response(short_answer.function(from_request(request)))
        except InvalidScore as error:
            grpc_context.set_code(grpc.StatusCode.DATA_LOSS)  # the verifier returned what is no score
            grpc_context.set_details(str(error))
            raise

    async def VerifyStream(self, requests: AsyncIterator[Any], grpc_context: RayServegRPCContext) -> AsyncIterator[Any]:
        grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)  # Serve itself would say INTERNAL, and burnish not make unary calls
        grpc_context.set_details("only unary calls are served here")
        raise NotImplementedError
        yield  # makes it the stream that the contract says it is


def main(port: int) -> None:
    token = read_token("VERIFIER_TOKEN", "")
    ray.init(log_to_driver=False, include_dashboard=False, num_cpus=4)
    serve.start(grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[ADD_TO_SERVER]))
    replicas = serve.deployment(ShortAnswer, name="short-answer", num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    serve.run(replicas.bind(token), name="short-answer", route_prefix="/")
    print(f"serving {short_answer.id} at 127.0.0.1:{port} (Ctrl-C stops it)", flush=True)
    try:
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
