"""The batched methods of the contract, in the form that the client and the server share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message as ProtoMessage

from ..v1 import environment_pb2, tool_pb2, verifier_pb2

CONTRACT = "burnish.v1"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 1024 * 1024  # a batch closes once it is this large; an item larger than that travels alone
BATCH_ITEMS = 512

RequestT = TypeVar("RequestT", bound=ProtoMessage)
ResponseT = TypeVar("ResponseT", bound=ProtoMessage)


@dataclass(frozen=True)
class BatchedMethod(Generic[RequestT, ResponseT]):
    """A bidirectional stream of batches. All such methods share the fields of items (request_id, timeout_s, request | cancel) and of
    results (request_id, response | error); the classes differ.

    Example: `VERIFY`.
    """

    path: str
    request: type[RequestT]
    response: type[ResponseT]
    item: type[Any]
    items: type[Any]
    result: type[Any]
    results: type[Any]

    @property
    def service(self) -> str:
        """Full name of the service. Example: `burnish.v1.VerifierService`."""
        return self.path.split("/")[1]

    @property
    def unary_path(self) -> str:
        """The method that takes one request: in this contract it is called as the stream is, without "Stream" at the end.

        Example: `/burnish.v1.VerifierService/Verify`.
        """
        return self.path.removesuffix("Stream")


VERIFY = BatchedMethod(
    "/burnish.v1.VerifierService/VerifyStream",
    verifier_pb2.VerifyRequest,
    verifier_pb2.VerifyResponse,
    verifier_pb2.VerifyItem,
    verifier_pb2.VerifyStreamRequest,
    verifier_pb2.VerifyResult,
    verifier_pb2.VerifyStreamResponse,
)

CALL = BatchedMethod(
    "/burnish.v1.ToolService/CallStream",
    tool_pb2.CallRequest,
    tool_pb2.CallResponse,
    tool_pb2.CallItem,
    tool_pb2.CallStreamRequest,
    tool_pb2.CallResult,
    tool_pb2.CallStreamResponse,
)

EPISODE = BatchedMethod(
    "/burnish.v1.EnvironmentService/EpisodeStream",
    environment_pb2.EpisodeRequest,
    environment_pb2.EpisodeResponse,
    environment_pb2.EpisodeItem,
    environment_pb2.EpisodeStreamRequest,
    environment_pb2.EpisodeResult,
    environment_pb2.EpisodeStreamResponse,
)


def method_of(path: str) -> BatchedMethod[Any, Any]:
    """The method of this module whose stream has the path."""
    return next(value for value in globals().values() if isinstance(value, BatchedMethod) and value.path == path)
