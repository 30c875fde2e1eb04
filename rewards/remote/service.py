"""Verifiers: functions that judge finished episodes, served over gRPC.

    @verifier("my-team/short-answer-v1")
    def short_answer(episode: RewardInput) -> Score:
        return Score(episode.answer == episode.data["answer"])

`burnish serve-verifier module:short_answer` serves it. Sync functions run in worker threads, or with
`isolation = "process"` in processes that can be killed; async ones run on the server's event loop.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import grpc

from ...envs.callables import doc_of, is_async, source_of
from ...envs.failures import short_traceback
from ...envs.registry import Registry, check_id, did_you_mean, shortened
from ...rpc.batches import BatchedHandler, Limits
from ...rpc.errors import Status
from ...rpc.methods import CONTRACT, VERIFY
from ...rpc.payload import PayloadError
from ...rpc.user_code import is_asked_for
from ...v1 import verifier_pb2, verifier_pb2_grpc
from ..calling.processes import CannotCall, Died, Raised, Workers, reference, worker_count
from ..declaration import ISOLATIONS, Isolation
from ..plugin import as_score
from ..types import InvalidScore, RewardInput, Score
from .wire import check_turns, from_request, to_response

VerifierFunction = Callable[[RewardInput], Any]
F = TypeVar("F", bound=VerifierFunction)


@dataclass(frozen=True, slots=True)
class Verifier:
    """A registered verifier function. isolation: whether a sync one runs in a thread, or in a process that is killed
    when a call is late."""

    id: str
    function: VerifierFunction
    isolation: Isolation = "thread"

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return doc_of(self.function).partition("\n")[0]


VERIFIERS: Registry[Verifier] = Registry("verifier", "burnish.verifiers")


def verifier(id: str, *, isolation: Isolation = "thread") -> Callable[[F], Verifier]:
    """Register a sync or async function `f(episode: RewardInput) -> Score | float | Mapping[str, float]` as the verifier `id`.

    isolation: "process" runs a sync function in worker processes (one per core, two at least) that are killed when a call is late: for
    what may hang, or hold the GIL as a regular expression that backtracks does.

    Raises ValueError on a malformed id, an unknown isolation, a signature that does not take exactly one episode, or a function that
    worker processes cannot have.
    """
    check_id(id, "verifier")
    if isolation not in ISOLATIONS:
        raise ValueError(f"verifier {id!r}: isolation {isolation!r} is unknown{did_you_mean(str(isolation), list(ISOLATIONS))}")

    def register(function: F) -> Verifier:
        try:
            inspect.signature(function).bind(None)
        except TypeError:
            raise ValueError(f"verifier {id!r}: {source_of(function)} must take one argument, the episode (a RewardInput)") from None
        if isolation == "process":
            reference("verifier", id, function)
        return VERIFIERS.register(id, Verifier(id, function, isolation), source_of(function))

    return register


class VerifierService(verifier_pb2_grpc.VerifierServiceServicer):
    """Serves one or more verifiers, unary and batched."""

    full_name = "burnish.v1.VerifierService"

    def __init__(self, verifiers: Sequence[Verifier], limits: Limits | None = None) -> None:
        if not verifiers:
            raise ValueError("a verifier service needs at least one verifier")
        self._verifiers = {one.id: one for one in verifiers}
        self._async = {one.id for one in verifiers if is_async(one.function)}
        self._handler = BatchedHandler(VERIFY, self.answer, limits)
        self._workers = {
            one.id: Workers(reference("verifier", one.id, one.function), {}, worker_count(self._handler.limits.threads))
            for one in verifiers
            if one.isolation == "process"
        }

    def add_to(self, server: grpc.aio.Server) -> None:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self, server)

    @property
    def in_flight(self) -> int:
        return self._handler.in_flight

    @property
    def able(self) -> bool:
        return self._handler.able

    async def drain(self) -> None:
        await self._handler.drain()

    def close(self) -> bool:
        for workers in self._workers.values():
            workers.close()
        return self._handler.close()

    async def Describe(self, request: verifier_pb2.DescribeVerifiersRequest, context: Any) -> verifier_pb2.DescribeVerifiersResponse:
        rows = [verifier_pb2.VerifierInfo(id=one.id, description=one.description) for one in self._verifiers.values()]
        return verifier_pb2.DescribeVerifiersResponse(contract=CONTRACT, server_version=f"burnish {version('burnish')}", verifiers=rows)

    async def Verify(self, request: verifier_pb2.VerifyRequest, context: Any) -> verifier_pb2.VerifyResponse:
        return await self._handler.unary(request, context)

    async def VerifyStream(self, request_iterator: AsyncIterator[verifier_pb2.VerifyStreamRequest], context: Any) -> None:  # type: ignore[override]
        await self._handler.stream(request_iterator, context)

    async def answer(self, request: verifier_pb2.VerifyRequest) -> verifier_pb2.VerifyResponse:
        """The verdict on one request, however it came. Raises Status."""
        one = self._find(request.verifier)
        try:
            episode = await self._handler.read(from_request, request)
        except PayloadError as error:
            raise Status("INVALID_ARGUMENT", str(error)) from None
        try:
            if one.id in self._async:
                result = await one.function(episode)
            elif one.id in self._workers:
                result = await self._workers[one.id].call(episode)
            else:
                result = await self._handler.in_thread(one.function, episode)
        except Status:
            raise
        except (Died, Raised, CannotCall) as error:
            raise Status("UNKNOWN", str(error)) from None
        except BaseException as error:  # a sys.exit would end the server
            if is_asked_for(error):
                raise
            raise Status("UNKNOWN", short_traceback(error)) from error
        try:
            score = Score(result) if type(result) is float else as_score(result)
            check_turns(score, episode)
            return to_response(score)
        except InvalidScore as error:
            raise Status("DATA_LOSS", str(error)) from None

    def _find(self, id: str) -> Verifier:
        if not id and len(self._verifiers) == 1:
            return next(iter(self._verifiers.values()))
        if id not in self._verifiers:
            raise Status("NOT_FOUND", f"verifier {shortened(id)!r} is not served here{did_you_mean(id, list(self._verifiers))}")
        return self._verifiers[id]
