"""Looking at a service from outside, as a client in any language would: what it is, its health, raw bytes, items on a stream.

Everything here is one connection under one deadline. Raises RpcError like every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from .address import Endpoint, shown_address
from .bounds import MAX_PARTS, MOST_DESCRIBED, UNREADABLE, answers_of
from .client import unary_blocking
from .errors import CODES, RpcRemoteError
from .methods import BatchedMethod
from .transport.channels import token_metadata

OK = 0
MOST_HEARD = 2000
"""Answers on a stream, and what is in them, beyond two for each item that was sent."""
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
REASON_S = 2.0
REFUSALS = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
OWN_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")


def services_at(address: str, timeout_s: float = 10.0) -> list[str]:
    """Full names of the services there, by gRPC reflection, those of gRPC itself left out.

    Raises RpcUnavailable when nothing listens, RpcRemoteError when the server offers no reflection.
    """

    async def ask(channel: grpc.aio.Channel, left_s: float) -> list[str]:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        open_stream: Any = channel.stream_stream(
            REFLECTION, type(request).SerializeToString, answers_of(reflection_pb2.ServerReflectionResponse, MOST_DESCRIBED, small=0)
        )
        heard = partial(_heard, address, partial(open_stream, metadata=_token(address)))
        return [one.name for one in await heard(request, left_s, lambda answer: answer.list_services_response.service, MOST_HEARD)]

    return [name for name in unary_blocking(address, ask, timeout_s) if name not in OWN_SERVICES]


def health_of(address: str, service: str, timeout_s: float = 10.0) -> str:
    """What gRPC's health service says. Example: `health_of("127.0.0.1:50051", "burnish.v1.VerifierService")` is "SERVING"."""

    async def ask(channel: grpc.aio.Channel, left_s: float) -> str:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=left_s)
        if answer is None:  # gRPC logs an answer that it cannot read, and gives none
            raise RpcRemoteError(shown_address(address), "its answer is no message of gRPC's health service", CODES["DATA_LOSS"])
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    return unary_blocking(address, ask, timeout_s)


def call_raw(address: str, path: str, payload: bytes, timeout_s: float) -> tuple[int, bytes, str]:
    """One unary call with bytes as they are: status code (0 is OK), the response's bytes, the error's text.

    path: `/package.Service/Method`.
    """

    async def ask(channel: grpc.aio.Channel, left_s: float) -> tuple[int, bytes, str]:
        method: Any = channel.unary_unary  # without serializers, which the stubs demand, bytes stay bytes
        call = method(path)
        try:
            return OK, await call(payload, timeout=left_s), ""
        except grpc.aio.AioRpcError as error:
            return int(error.code().value[0]), b"", error.details() or error.code().name

    return unary_blocking(address, ask, timeout_s)


def exchange(address: str, method: BatchedMethod[Any, Any], items: Sequence[Any], timeout_s: float) -> list[Any]:
    """Send the items in one batch, close the sending side, and read results until the server ends the stream.

    Raises RpcTimeout when it has not ended after `timeout_s` seconds.
    """

    async def ask(channel: grpc.aio.Channel, left_s: float) -> list[Any]:
        open_stream: Any = channel.stream_stream(
            method.path, method.items.SerializeToString, answers_of(method.results, MAX_PARTS, small=0)
        )
        heard = partial(_heard, address, partial(open_stream, metadata=_token(address)))
        return await heard(method.items(items=items), left_s, lambda message: message.results, MOST_HEARD + 2 * len(items))

    return unary_blocking(address, ask, timeout_s)


async def _heard(
    address: str, open_stream: Callable[..., Any], request: Any, left_s: float, entries: Callable[[Any], Sequence[Any]], most: int
) -> list[Any]:
    """The entries of every answer on a stream to one request. Raises RpcRemoteError for an answer that cannot be read, and where there are
    more than `most` answers and entries.

    Where writing met a refusal, gRPC says "internal"; a stream without a request says which.
    """
    found, answers = list[Any](), 0
    try:
        async for answer in open_stream(iter([request]), timeout=left_s):
            if answer is None:  # gRPC logs one that it cannot read
                raise RpcRemoteError(shown_address(address), UNREADABLE, CODES["DATA_LOSS"])
            answers += 1
            found.extend(entries(answer))
            if len(found) + answers > most:
                raise RpcRemoteError(shown_address(address), f"a stream brought more than {most} answers", CODES["DATA_LOSS"])
        return found
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL:
            again = open_stream(timeout=min(left_s, REASON_S))
            if (code := await again.code()) in REFUSALS:
                raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), await again.details(), None) from error
        raise


def _token(address: str) -> tuple[tuple[str, str], ...]:
    """What a stream must carry; unary calls get it from their channel."""
    return token_metadata(Endpoint.parse(address).security.token())


def outcome_of(result: Any) -> tuple[int, Any]:
    """A result's status code and response: (0, response), or (code, None). Example: `(CODES["NOT_FOUND"], None)`."""
    match result.WhichOneof("outcome"):
        case "response":
            return OK, result.response
        case "error":
            return int(result.error.code), None
        case _:
            return CODES["UNSPECIFIED"], None
