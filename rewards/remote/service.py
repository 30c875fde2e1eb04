"""Verifiers: functions that judge finished episodes, served over gRPC.

    @verifier("my-team/short-answer-v1")
    def short_answer(episode: RewardInput) -> Score:
        return Score(float(episode.messages[-1].text == episode.data["answer"]))

`burnish serve-verifier module:short_answer` serves it. Sync functions run in worker threads, async ones on the server's event loop.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import grpc

from ...envs.failures import short_traceback
from ...envs.registry import Registry, check_id, did_you_mean
from ...rpc.batches import BatchedHandler, Limits
from ...rpc.errors import Status
from ...rpc.methods import CONTRACT, VERIFY
from ...rpc.payload import PayloadError
from ...v1 import verifier_pb2, verifier_pb2_grpc
from ..plugin import as_score
from ..types import InvalidScore, RewardInput, Score
from .wire import from_request, to_response

VerifierFunction = Callable[[RewardInput], Any]
F = TypeVar("F", bound=VerifierFunction)


@dataclass(frozen=True, slots=True)
class Verifier:
    """A registered verifier function."""

    id: str
    function: VerifierFunction

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


VERIFIERS: Registry[Verifier] = Registry("verifier", "burnish.verifiers")


def verifier(id: str) -> Callable[[F], Verifier]:
    """Register a sync or async function `f(episode: RewardInput) -> Score | float | Mapping[str, float]` as the verifier `id`.

    Raises ValueError on a malformed id or a signature that does not take exactly one episode.
    """
    check_id(id, "verifier")

    def register(function: F) -> Verifier:
        try:
            inspect.signature(function).bind(None)
        except TypeError:
            raise ValueError(f"verifier {id!r}: {function.__qualname__} must take one argument, the episode (a RewardInput)") from None
        return VERIFIERS.register(id, Verifier(id, function), f"{function.__module__}:{function.__qualname__}")

    return register


class VerifierService(verifier_pb2_grpc.VerifierServiceServicer):
    """Serves one or more verifiers, unary and batched."""

    full_name = "burnish.v1.VerifierService"

    def __init__(self, verifiers: Sequence[Verifier], limits: Limits | None = None) -> None:
        if not verifiers:
            raise ValueError("a verifier service needs at least one verifier")
        self._verifiers = {one.id: one for one in verifiers}
        self._async = {one.id for one in verifiers if inspect.iscoroutinefunction(one.function)}
        self._handler = BatchedHandler(VERIFY, self._verify, limits)

    def add_to(self, server: grpc.aio.Server) -> None:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self, server)

    @property
    def in_flight(self) -> int:
        return self._handler.in_flight

    async def drain(self) -> None:
        await self._handler.drain()

    def close(self) -> bool:
        return self._handler.close()

    async def Describe(self, request: verifier_pb2.DescribeVerifiersRequest, context: Any) -> verifier_pb2.DescribeVerifiersResponse:
        rows = [verifier_pb2.VerifierInfo(id=one.id, description=one.description) for one in self._verifiers.values()]
        return verifier_pb2.DescribeVerifiersResponse(contract=CONTRACT, server_version=f"burnish {version('burnish')}", verifiers=rows)

    async def Verify(self, request: verifier_pb2.VerifyRequest, context: Any) -> verifier_pb2.VerifyResponse:
        return await self._handler.unary(request, context)

    async def VerifyStream(self, request_iterator: AsyncIterator[verifier_pb2.VerifyStreamRequest], context: Any) -> None:  # type: ignore[override]
        await self._handler.stream(request_iterator, context)

    async def _verify(self, request: verifier_pb2.VerifyRequest) -> verifier_pb2.VerifyResponse:
        one = self._find(request.verifier)
        try:
            episode = from_request(request)
        except PayloadError as error:
            raise Status("INVALID_ARGUMENT", str(error)) from None
        try:
            if one.id in self._async:
                result = await one.function(episode)
            else:
                result = await self._handler.in_thread(one.function, episode)
        except Exception as error:
            raise Status("UNKNOWN", short_traceback(error)) from error
        try:
            return to_response(Score(result) if type(result) is float else as_score(result))
        except InvalidScore as error:
            raise Status("DATA_LOSS", str(error)) from None

    def _find(self, id: str) -> Verifier:
        if not id and len(self._verifiers) == 1:
            return next(iter(self._verifiers.values()))
        if id not in self._verifiers:
            raise Status("NOT_FOUND", f"verifier {id!r} is not served here{did_you_mean(id, list(self._verifiers))}")
        return self._verifiers[id]
