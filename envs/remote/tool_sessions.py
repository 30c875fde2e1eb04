"""The sessions of a tool server: what is open for whom, and the answers that may be asked for again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

from ...rpc.batches import Limits
from ...rpc.errors import Status
from ...rpc.user_code import is_asked_for
from ...v1 import tool_pb2
from ..failures import EpisodeFailure, said_by
from ..registry import shortened
from ..tool_calls import MAX_CALLS
from ..tool_sessions import LocalSession
from .held import SessionRoom, SessionShare, read_bytes
from .service import SessionLimits, check_id_chars
from .session import digest
from .users import Users

log = logging.getLogger("burnish.envs")
T = TypeVar("T")

REMEMBERED: Final = MAX_CALLS
"""Answers of a session that are kept: those of one turn may all be lost together, and be asked for again."""
REMEMBERED_BYTES: Final = 1 << 20
"""Bytes of them, which is more than a policy reads in a turn. The last one is kept, however long it is, where there is room for it."""
KNOWN: Final = 32 * MAX_CALLS
"""Calls of a session whose id is known, so that one is refused, and not run again, whose answer is not kept any more."""

MOST_AT_WORK: Final = 2 * MAX_CALLS
"""Calls of a session that are at work at once: those of a turn, and as many that nobody waits for any more."""

Answer = tool_pb2.CallResponse | Status
Guard = Callable[[Callable[[], T]], T]
Run = Callable[[LocalSession, tool_pb2.CallRequest, Guard[str]], Awaitable[tool_pb2.CallResponse]]
InThread = Callable[[Callable[[], object]], Coroutine[object, object, object]]


class AnsweredCalls:
    """The calls of a session by their id: at work, answered, and answered so long ago that the answer is forgotten."""

    def __init__(self, share: SessionShare) -> None:
        self._share = share
        self._tasks: dict[str, asyncio.Task[Answer]] = {}
        self._sizes: dict[str, int] = {}  # of the answers that are kept, the oldest first
        self._forgotten: deque[bytes] = deque(maxlen=KNOWN)
        self.at_work = 0

    def find(self, call_id: str) -> asyncio.Task[Answer] | None:
        """The call of this id, None when there was none. Raises Status FAILED_PRECONDITION when its answer is forgotten."""
        if digest(call_id.encode()) in self._forgotten:
            kept = f"the last {REMEMBERED} are, up to {REMEMBERED_BYTES >> 20} MiB, where there is room for them"
            raise Status("FAILED_PRECONDITION", f"call {shortened(call_id)!r} was answered, and its answer is not kept any more: {kept}")
        return self._tasks.get(call_id)

    def take(self, request: tool_pb2.CallRequest) -> None:
        """A call of a new id is about to be at work. Raises Status RESOURCE_EXHAUSTED where there is no room for it."""
        texts = (request.arguments_json, request.task_data_json)
        if not self._share.hold(("call", request.call_id), read_bytes(request.ByteSize(), texts)):
            raise self._share.room.full

    def add(self, call_id: str, task: asyncio.Task[Answer]) -> None:
        """It is at work."""
        self._tasks[call_id] = task
        self.at_work += 1
        task.add_done_callback(lambda done: self._keep(call_id, done))

    def cancel(self) -> None:
        """End what is at work."""
        for task in self._tasks.values():
            task.cancel()

    def _keep(self, call_id: str, task: asyncio.Task[Answer]) -> None:
        """Keep an answer, and forget the oldest ones where there are too many; this one too where there is no room for it."""
        self.at_work -= 1
        self._share.hold(("call", call_id), 0)
        answer = None if task.cancelled() else task.result()
        size = self._sizes[call_id] = answer.ByteSize() if isinstance(answer, tool_pb2.CallResponse) else 0
        while len(self._sizes) > 1 and (len(self._sizes) > REMEMBERED or sum(self._sizes.values()) > REMEMBERED_BYTES):
            self._forget(next(iter(self._sizes)))
        while call_id in self._sizes and not self._share.keep(("answer", call_id), size):
            self._forget(next(iter(self._sizes)))

    def _forget(self, call_id: str) -> None:
        del self._sizes[call_id], self._tasks[call_id]
        self._share.hold(("answer", call_id), 0)
        self._forgotten.append(digest(call_id.encode()))


class ToolSession:
    """One session. Its calls are tasks of its own, which outlive whoever waits for them; its tools are closed once nothing uses them."""

    def __init__(self, session_id: str, share: SessionShare, turn: AbstractAsyncContextManager[object], now: float) -> None:
        """share: of the bytes that sessions hold. now: seconds, of the clock that tells idleness."""
        self.session_id = session_id
        self.share = share
        self.turn = turn
        self.used = now
        self.waiting = 0
        self.tools: LocalSession | None = None
        self.opened: asyncio.Task[Status | None]
        self.answers = AnsweredCalls(share)
        self.users = Users(f"session {session_id!r} was closed")

    def guard(self, work: Callable[[], T]) -> T:
        """Do work on the tools in this thread, which nobody can stop."""
        return self.users.guard(work, self.close_tools)

    def make(self, make: Callable[[], LocalSession]) -> None:
        """Make the tools. Raises as `make` does."""
        self.tools = make()

    def discard(self) -> bool:
        """Let nothing more begin, and cancel what is at work; True when the caller is to call `close_tools`."""
        mine = self.users.discard()
        self.share.release()
        self.answers.cancel()
        return mine

    def close_tools(self) -> None:
        """Have the tools let go of what they hold. Harmless when they were never made."""
        tools, self.tools = self.tools, None
        try:
            if tools is not None:
                tools.close()
        except EpisodeFailure as error:
            log.warning("session %s: %s", self.session_id, error)


class ToolSessions:
    """All sessions of a server. make: the tools of one session, from the request that opens it; called in a thread. run: calls one of them.
    calls: how many may be at work in all sessions together, waited for or not, and how long one may take. ordered: calls of one session
    follow each other."""

    def __init__(
        self,
        make: Callable[[tool_pb2.CallRequest], LocalSession],
        run: Run,
        in_thread: InThread,
        limits: SessionLimits,
        calls: Limits,
        ordered: bool,
    ) -> None:
        self.limits = limits
        self.at_work = 0
        self._calls = calls
        self._make = make
        self._run = run
        self._in_thread = in_thread
        self._ordered = ordered
        self._open: dict[str, ToolSession] = {}
        self._room = SessionRoom("sessions", limits.max_bytes)
        self._closing: set[asyncio.Future[object]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    async def handle(self, request: tool_pb2.CallRequest) -> tool_pb2.CallResponse:
        """Open, call or close. Raises Status."""
        check_id_chars("session_id", request.session_id)
        check_id_chars("call_id", request.call_id)
        match request.session_step:
            case tool_pb2.SESSION_STEP_OPEN:
                session = self._open.get(request.session_id) or self._begin(request)
                refusal = await self._wait(session, session.opened)
                if refusal is not None:
                    raise Status(refusal.code, refusal.message)
                return tool_pb2.CallResponse(text="")
            case tool_pb2.SESSION_STEP_CLOSE:
                closing = self._open.pop(request.session_id, None)
                if closing is not None and closing.discard():
                    await self._in_thread(closing.close_tools)
                return tool_pb2.CallResponse(text="")
            case _:
                return await self._call(request)

    def close(self) -> list[ToolSession]:
        """Stop all of it; returns the sessions whose tools are to be closed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        left = [session for session in self._open.values() if session.discard()]
        self._open.clear()
        return left

    def _begin(self, request: tool_pb2.CallRequest) -> ToolSession:
        share = SessionShare(self._room)
        size = read_bytes(request.ByteSize(), [request.task_data_json])
        if refusal := self.limits.refusal(len(self._open), share, size):
            self._sweep()
            refusal = self.limits.refusal(len(self._open), share, size)
        if refusal is not None:
            raise refusal
        turn = asyncio.Lock() if self._ordered else contextlib.nullcontext()
        session = ToolSession(request.session_id, share, turn, asyncio.get_running_loop().time())
        self._open[request.session_id] = session
        session.opened = asyncio.create_task(self._make_tools(session, request))
        if self._sweeper is None:
            self._sweep()
        return session

    async def _make_tools(self, session: ToolSession, request: tool_pb2.CallRequest) -> Status | None:
        refusal: Status | None = None
        try:
            await self._in_thread(lambda: session.guard(lambda: session.make(lambda: self._make(request))))
        except Status as status:
            refusal = status
        except EpisodeFailure as error:
            refusal = Status("UNKNOWN", error.failure.detail)
        if refusal is not None and self._open.get(session.session_id) is session:
            del self._open[session.session_id]  # nothing has begun: it may be opened again
            session.share.release()
        return refusal

    async def _call(self, request: tool_pb2.CallRequest) -> tool_pb2.CallResponse:
        session = self._open.get(request.session_id)
        if session is None:
            why = f"it was never opened, was closed, or was idle for more than {self.limits.idle_s:g} s"
            raise Status("NOT_FOUND", f"session {shortened(request.session_id)!r} is not open here: {why}")
        if not request.call_id:
            raise Status("INVALID_ARGUMENT", "call_id must be set, and unique to this call within its session")
        task = session.answers.find(request.call_id)
        if task is None:
            task = self._start(session, request)
        answer = await self._wait(session, task)
        if isinstance(answer, Status):
            raise Status(answer.code, answer.message)
        return answer

    def _start(self, session: ToolSession, request: tool_pb2.CallRequest) -> asyncio.Task[Answer]:
        """Have a call be worked on, for whoever waits for it, or for nobody once its client gave up."""
        if session.answers.at_work >= MOST_AT_WORK or self.at_work >= self._calls.max_in_flight:
            count, where = (self.at_work, "on this server") if session.answers.at_work < MOST_AT_WORK else (MOST_AT_WORK, "in this session")
            raise Status("RESOURCE_EXHAUSTED", f"{count} calls are at work {where}")
        session.answers.take(request)
        task = asyncio.create_task(self._work_in_time(session, request))
        self.at_work += 1
        task.add_done_callback(self._ended)
        session.answers.add(request.call_id, task)
        return task

    def _ended(self, task: asyncio.Task[Answer]) -> None:
        self.at_work -= 1

    async def _work_in_time(self, session: ToolSession, request: tool_pb2.CallRequest) -> Answer:
        deadline = asyncio.timeout(self._calls.max_deadline_s)
        try:
            async with deadline:
                return await self._work(session, request)
        except TimeoutError:
            if not deadline.expired():
                raise
            return Status("DEADLINE_EXCEEDED", f"no result within {self._calls.max_deadline_s:g} s")

    async def _work(self, session: ToolSession, request: tool_pb2.CallRequest) -> Answer:
        try:
            refusal = await asyncio.shield(session.opened)
            if refusal is not None:
                return refusal
            async with session.turn:
                session.users.enter()
                try:
                    assert session.tools is not None, "an open session has tools"
                    return await self._run(session.tools, request, session.guard)
                finally:
                    if session.users.leave():
                        self._later(session)
        except Status as status:
            return status
        except BaseException as error:
            if is_asked_for(error):
                raise
            log.error("session %s: the server failed", session.session_id, exc_info=error)
            return Status("INTERNAL", f"{type(error).__name__}: {said_by(error)}")

    async def _wait(self, session: ToolSession, task: asyncio.Task[T]) -> T:
        clock = asyncio.get_running_loop()
        session.used = clock.time()
        if not task.done():
            session.waiting += 1
            try:
                await asyncio.wait({task})  # unlike awaiting it: who gives up does not cancel it for the others
            finally:
                session.waiting -= 1
                session.used = clock.time()
        if task.cancelled():
            raise Status("CANCELLED", f"session {session.session_id!r} was closed")
        return task.result()

    def _later(self, session: ToolSession) -> None:
        task = asyncio.ensure_future(self._in_thread(session.close_tools))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _sweep(self) -> None:
        """Close the sessions that nobody asked anything for too long, and look again later as long as there are any."""
        loop = asyncio.get_running_loop()
        old = loop.time() - self.limits.idle_s
        for session in [one for one in self._open.values() if not one.waiting and one.used < old]:
            log.info("session %s: idle for more than %g s; closed", session.session_id, self.limits.idle_s)
            del self._open[session.session_id]
            if session.discard():
                self._later(session)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper = loop.call_later(self.limits.idle_s / 4, self._sweep) if self._open else None


def close_all(sessions: Sequence[ToolSession]) -> None:
    """Close the tools of sessions that were discarded."""
    for session in sessions:
        session.close_tools()
