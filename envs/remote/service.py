"""Environments behind gRPC: the service over registered environments, one session with a fresh environment per episode.

`burnish serve-env ID` serves one; `RemoteEnv` (`burnish/Remote-v0`) plays in it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import grpc

from ...rpc.batches import BatchedHandler, Limits
from ...rpc.errors import Status
from ...rpc.methods import CONTRACT, EPISODE
from ...rpc.payload import encode_json
from ...rpc.urls import without_named_secrets
from ...rpc.user_code import is_asked_for
from ...v1 import environment_pb2, environment_pb2_grpc
from ..contract import ENVS
from ..failures import said_by
from ..registry import did_you_mean, shortened
from .held import SessionRoom, SessionShare, read_bytes_of_task
from .session import Answer, EpisodeSession

log = logging.getLogger("burnish.envs")

CLOSE_S = 5.0
"""Seconds that the environments of open sessions get to close in when the server stops."""


@dataclass(frozen=True, slots=True)
class ServedEnvironment:
    """A registered environment and the arguments it is made with. allowed: those that a client may set instead, to plain values
    (`client_kwargs`); none unless named.

    Raises ValueError when the id is unknown, an argument is no plain JSON, or an allowed one is none of the environment's.

    Example: `ServedEnvironment("burnish/Arithmetic-v0", {"max_operand": 20}, allowed=("max_operand",))`.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parameters = inspect.signature(ENVS.get(self.id)).parameters
        encode_json(self.kwargs)
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return
        for name in self.allowed:
            if name not in parameters:
                raise ValueError(f"environment {self.id!r} has no argument {name!r} to allow{did_you_mean(name, list(parameters))}")

    def describe(self) -> environment_pb2.EnvironmentInfo:
        """Its id, the first line of its docstring, and its arguments."""
        doc = (inspect.getdoc(ENVS.get(self.id)) or "").partition("\n")[0]
        return environment_pb2.EnvironmentInfo(id=self.id, description=doc, kwargs_json=encode_json(without_named_secrets(self.kwargs)))


MAX_ID_CHARS = 1024
"""Of an id that a client chooses, and this server keeps."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long, how many and how large. idle_s: seconds without a call after which a session is closed. max_sessions: open at a time.
    max_bytes: of what they began with once it is read, of calls at work in them, and of the answers that they keep for whoever asks again.
    What would begin beyond either is refused with RESOURCE_EXHAUSTED, and an answer beyond it is not kept."""

    idle_s: float = 600.0
    max_sessions: int = 4096
    max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if not self.idle_s > 0 or self.max_sessions < 1:
            raise ValueError(f"sessions need idle_s above 0 and max_sessions of at least 1, not {self.idle_s:g} and {self.max_sessions}")

    def refusal(self, count: int, share: SessionShare, size: int) -> Status | None:
        """Why no session may be opened by what takes so many bytes, None where one may, and its share then holds them. count: are open."""
        if count >= self.max_sessions:
            return Status("RESOURCE_EXHAUSTED", f"{count} {share.room.what} are open, as many as this server takes; close some of them")
        return None if share.hold("opened", size) else share.room.full


class EnvironmentService(environment_pb2_grpc.EnvironmentServiceServicer):
    """Serves environments, unary and batched.

    Resets and steps run in worker threads, those of one episode one after the other. A call whose deadline passes or that is cancelled
    goes on in its session, so that the environment is never left half-way: the same call again waits for its answer, any other is
    refused meanwhile, and closing the episode tells the environment (`burnish.rpc.batches.cancelled()`). inline: run resets and steps
    on the event loop instead, for environments that take microseconds and wait for nothing; no deadline can interrupt those.
    """

    full_name = "burnish.v1.EnvironmentService"

    def __init__(
        self,
        environments: Sequence[ServedEnvironment],
        sessions: SessionLimits | None = None,
        limits: Limits | None = None,
        inline: bool = False,
    ) -> None:
        if not environments:
            raise ValueError("an environment service needs at least one environment")
        self._environments = {one.id: one for one in environments}
        self._limits = sessions or SessionLimits()
        self._inline = inline
        self._handler = BatchedHandler(EPISODE, self._handle, limits)
        self._sessions: dict[str, EpisodeSession] = {}
        self._room = SessionRoom("episodes", self._limits.max_bytes)
        self._background: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(self, server)

    @property
    def in_flight(self) -> int:
        """Episodes that are open: what a server of environments has on its hands, also between steps."""
        return len(self._sessions)

    @property
    def able(self) -> bool:
        return self._handler.able

    async def drain(self) -> None:
        await self._handler.drain()

    def close(self) -> bool:
        """Close the environments of all sessions and release the threads; False when user code is stuck in one."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        left = [session for session in self._sessions.values() if self._abandon(session)]
        self._sessions.clear()
        closer = threading.Thread(target=_close_all, args=(left,), name="burnish-close-envs", daemon=True)
        closer.start()
        closer.join(CLOSE_S)
        return self._handler.close() and not closer.is_alive()

    async def Describe(
        self, request: environment_pb2.DescribeEnvironmentsRequest, context: Any
    ) -> environment_pb2.DescribeEnvironmentsResponse:
        return environment_pb2.DescribeEnvironmentsResponse(
            contract=CONTRACT,
            server_version=f"burnish {version('burnish')}",
            environments=[one.describe() for one in self._environments.values()],
            idle_timeout_s=self._limits.idle_s,
            max_sessions=self._limits.max_sessions,
        )

    async def Reset(self, request: environment_pb2.ResetRequest, context: Any) -> environment_pb2.ResetResponse:
        return (await self._handler.unary(environment_pb2.EpisodeRequest(reset=request), context)).reset

    async def Step(self, request: environment_pb2.StepRequest, context: Any) -> environment_pb2.StepResponse:
        return (await self._handler.unary(environment_pb2.EpisodeRequest(step=request), context)).step

    async def Close(self, request: environment_pb2.CloseRequest, context: Any) -> environment_pb2.CloseResponse:
        return (await self._handler.unary(environment_pb2.EpisodeRequest(close=request), context)).close

    async def EpisodeStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[environment_pb2.EpisodeStreamRequest], context: Any
    ) -> None:
        await self._handler.stream(request_iterator, context)

    async def _handle(self, request: environment_pb2.EpisodeRequest) -> environment_pb2.EpisodeResponse:
        match request.WhichOneof("call"):
            case "reset":
                return await self._reset(request.reset)
            case "step":
                return await self._step(request.step)
            case "close":
                session = self._sessions.pop(request.close.episode_id, None)
                if session is not None and self._abandon(session):
                    await self._handler.in_thread(session.close_env)
                return environment_pb2.EpisodeResponse(close=environment_pb2.CloseResponse())
            case _:
                raise Status("INVALID_ARGUMENT", "a request is a reset, a step or a close")

    async def _reset(self, request: environment_pb2.ResetRequest) -> environment_pb2.EpisodeResponse:
        if not request.episode_id:
            raise Status("INVALID_ARGUMENT", "episode_id must be set, and unique to this episode")
        check_id_chars("episode_id", request.episode_id)
        session = self._sessions.get(request.episode_id)
        if session is None:
            session = self._open(request)
            session.began = session.answer = answer = self._start(self._begin(session))
            answer.add_done_callback(session.keep)
        elif not session.is_begun_by(request):
            raise Status("FAILED_PRECONDITION", f"episode {request.episode_id!r} is open already, from another reset; ids must be unique")
        else:
            answer = session.kept(session.began)
        return await self._outcome(session, answer)

    async def _step(self, request: environment_pb2.StepRequest) -> environment_pb2.EpisodeResponse:
        session = self._sessions.get(request.episode_id)
        if session is None:
            why = f"it never began, was closed, or was idle for more than {self._limits.idle_s:g} s"
            raise Status("NOT_FOUND", f"episode {shortened(request.episode_id)!r} is not open here: {why}")
        if session.is_repeated(request):
            return await self._outcome(session, session.kept(session.answer))
        action = request.action
        session.take(action)
        session.answer = answer = self._start(self._work(session, lambda: session.play(action)))
        answer.add_done_callback(session.keep)
        return await self._outcome(session, answer)

    def _open(self, request: environment_pb2.ResetRequest) -> EpisodeSession:
        served, share = self._find(request.environment), SessionShare(self._room)
        size = read_bytes_of_task(request.ByteSize(), request.task, request.kwargs_json)
        if refusal := self._limits.refusal(len(self._sessions), share, size):
            self._sweep()
            refusal = self._limits.refusal(len(self._sessions), share, size)
        if refusal is not None:
            raise refusal
        session = EpisodeSession(served.id, served.kwargs, served.allowed, request, share, asyncio.get_running_loop().time())
        self._sessions[request.episode_id] = session
        if self._sweeper is None:
            self._sweep()
        return session

    def _find(self, id: str) -> ServedEnvironment:
        if not id and len(self._environments) == 1:
            return next(iter(self._environments.values()))
        if id not in self._environments:
            raise Status("NOT_FOUND", f"environment {shortened(id)!r} is not served here{did_you_mean(id, list(self._environments))}")
        return self._environments[id]

    def _start(self, work: Coroutine[Any, Any, Answer]) -> asyncio.Future[Answer]:
        """A task of the session's own, which outlives whoever waits for it; inline work is done at once."""
        if not self._inline:
            return asyncio.create_task(work)
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            work.send(None)
        except StopIteration as stop:
            done.set_result(stop.value)
        assert done.done(), "inline work awaits nothing"
        return done

    async def _begin(self, session: EpisodeSession) -> Answer:
        outcome = await self._work(session, session.begin)
        if isinstance(outcome, Status):  # nothing has begun: the same reset may be tried again
            if self._sessions.get(session.episode_id) is session:
                del self._sessions[session.episode_id]
            if session.discard():
                self._later(session)
        return outcome

    async def _work(self, session: EpisodeSession, work: Callable[[], environment_pb2.EpisodeResponse]) -> Answer:
        try:
            return session.run(work) if self._inline else await self._handler.in_thread(session.run, work)
        except Status as status:
            return status
        except BaseException as error:
            if is_asked_for(error):
                raise
            log.error("%s: the server failed", session.episode_id, exc_info=error)
            return Status("INTERNAL", f"{type(error).__name__}: {said_by(error)}")

    async def _outcome(self, session: EpisodeSession, answer: asyncio.Future[Answer]) -> environment_pb2.EpisodeResponse:
        clock = asyncio.get_running_loop()
        session.used = clock.time()
        if not answer.done():
            session.waiting += 1
            try:
                await asyncio.wait({answer})  # unlike awaiting it: who gives up does not cancel it for the others
            finally:
                session.waiting -= 1
                session.used = clock.time()
        if answer.cancelled():
            raise Status("CANCELLED", f"episode {session.episode_id!r} was closed")
        outcome = answer.result()
        if isinstance(outcome, Status):
            raise Status(outcome.code, outcome.message)
        return outcome

    def _abandon(self, session: EpisodeSession) -> bool:
        """Let the session do nothing more and tell user code at work for it; True when its environment is to be closed here."""
        mine = session.discard()
        session.answer.cancel()
        return mine

    def _sweep(self) -> None:
        """Close the sessions that nobody asked anything for too long, and look again later as long as there are any."""
        loop = asyncio.get_running_loop()
        old = loop.time() - self._limits.idle_s
        for session in [one for one in self._sessions.values() if not one.waiting and one.used < old]:
            log.info("%s: idle for more than %g s; closed", session.episode_id, self._limits.idle_s)
            del self._sessions[session.episode_id]
            if self._abandon(session):
                self._later(session)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper = loop.call_later(self._limits.idle_s / 4, self._sweep) if self._sessions else None

    def _later(self, session: EpisodeSession) -> None:
        task = asyncio.create_task(self._handler.in_thread(_close_all, [session]))
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def check_id_chars(name: str, id: str) -> None:
    """Raise Status INVALID_ARGUMENT for an id that is too long to be kept."""
    if len(id) > MAX_ID_CHARS:
        raise Status("INVALID_ARGUMENT", f"{name} has {len(id)} characters; the limit is {MAX_ID_CHARS}")


def _close_all(sessions: Sequence[EpisodeSession]) -> None:
    for session in sessions:
        try:
            session.close_env()
        except Status as error:
            log.warning("%s: closing its environment failed: %s", session.episode_id, error.message)
