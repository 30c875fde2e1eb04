"""The server side of a batched method: one handler function behind both the unary call and the stream.

An item that has to wait for something is a task of its own with its own deadline. A cancel item, a passed deadline and a client that
went away cancel that task, and with it the user's function: an async one gets CancelledError, a sync one (in a thread, which nobody can
stop) can ask `cancelled()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from .errors import Status
from .held import HeldBytes, HeldShare
from .methods import BatchedMethod, RequestT, ResponseT
from .streams import ServedStream, grpc_code, late
from .threads import Threads, cancelled
from .user_code import is_asked_for, message_of

__all__ = ["BatchedHandler", "Limits", "cancelled"]

log = logging.getLogger("burnish.rpc")
T = TypeVar("T")

AT_ONCE_BYTES = 256 << 10
"""Of a request that is read on the event loop: such a one may hold it for a part of a second, and one of 64 MiB for a minute."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one service takes on.

    max_deadline_s: longest deadline of an item, and the deadline of one that has none. max_in_flight: items at work on one stream, and
    unary calls at work or with an answer that is not taken; more are refused with RESOURCE_EXHAUSTED. threads: sync functions running at a
    time; more wait, their deadlines ticking. max_bytes: of requests at work and of results that no client has taken. A stream holds no more
    of them than it leaves free, and so do the unary calls together; a request beyond that is refused with RESOURCE_EXHAUSTED, and an answer
    is UNAVAILABLE.

    Nothing more of a stream is read while max_in_flight results of it wait to be taken, or half of the bytes that it may hold. What was
    read before may still end with results that find no room: those are UNAVAILABLE, as if the connection had broken. A stream of which
    nothing is taken for three minutes ends with RESOURCE_EXHAUSTED.
    """

    max_deadline_s: float = 600.0
    max_in_flight: int = 8192
    threads: int = 32
    max_bytes: int = 1 << 30


class BatchedHandler(Generic[RequestT, ResponseT]):
    """Serves one `BatchedMethod` with `handle(request) -> response`, which raises `Status` for a typed error."""

    def __init__(
        self, method: BatchedMethod[RequestT, ResponseT], handle: Callable[[RequestT], Awaitable[ResponseT]], limits: Limits | None = None
    ) -> None:
        self.method = method
        self.handle = handle
        self.limits = limits or Limits()
        self._threads = Threads(self.limits.threads)
        self._streams: set[ServedStream] = set()
        self._unary = 0
        self._draining = False
        self.held = HeldBytes(self.limits.max_bytes)
        self._held_unary = HeldShare(self.held)

    @property
    def max_in_flight(self) -> int:
        """Items at work on one stream; more are refused."""
        return self.limits.max_in_flight

    @property
    def in_flight(self) -> int:
        """Items and unary calls at work, and results that their clients have not read yet."""
        return self._unary + sum(len(stream.items) + stream.unread for stream in self._streams)

    @property
    def able(self) -> bool:
        """Whether it can serve: False while every worker thread is stuck in a function that does not return."""
        return self._threads.able

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run a sync function in a worker thread, `cancelled()` telling it when the awaiting task was cancelled.

        Raises Status UNAVAILABLE at once when every thread is stuck.
        """
        if not self._threads.able:
            raise Status("UNAVAILABLE", f"all {self.limits.threads} worker threads are stuck in calls whose callers gave up")
        return await self._threads.run(function, *args)

    async def read(self, read: Callable[[RequestT], T], request: RequestT) -> T:
        """What is read of a request: at once, or in a thread where it is so large that everybody else would wait for it. Raises as `read`
        does, and as `in_thread`."""
        return read(request) if request.ByteSize() <= AT_ONCE_BYTES else await self.in_thread(read, request)

    async def unary(self, request: RequestT, context: grpc.aio.ServicerContext[Any, Any]) -> ResponseT:
        """Serve one unary call; errors become gRPC statuses."""
        request_id = _request_id(context)
        context.set_trailing_metadata((("burnish-request-id", request_id),))
        if self._unary >= self.limits.max_in_flight:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._unary} unary calls are in flight")
        size = request.ByteSize()
        if not self._held_unary.take(size):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self.held.full)
        call = _UnaryCall(size)
        self._unary += 1
        context.add_done_callback(lambda _: self._over(call))  # type: ignore[arg-type]  # a class in its stub
        remaining: float | None = context.time_remaining()  # type: ignore[no-untyped-call,unused-ignore]
        seconds = self.seconds(remaining or 0.0)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                outcome = await self.settle(request, request_id)
        except TimeoutError:
            if not deadline.expired():
                raise
            outcome = late(seconds)
        finally:
            self._hold(call, 0)
        if not isinstance(outcome, Status) and not self._hold(call, outcome.ByteSize()):
            outcome = Status("UNAVAILABLE", self.held.unread)  # its work is done: not what has a client send it again
        if isinstance(outcome, Status):
            await context.abort(grpc_code(outcome), outcome.message)
        assert not isinstance(outcome, Status)
        return outcome

    def _hold(self, call: _UnaryCall, size: int) -> bool:
        """Have a unary call hold so many bytes, in place of those that it holds; whether there was room for them."""
        self._held_unary.give_back(call.size)
        call.size = size if self._held_unary.take(size) else 0
        return call.size == size

    def _over(self, call: _UnaryCall) -> None:
        """The client has taken the answer of a unary call, or has left: until then, gRPC holds it."""
        self._unary -= 1
        self._hold(call, 0)

    async def stream(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve one stream until the client ends it, goes away, or this server drains."""
        stream = ServedStream(self, requests)
        self._streams.add(stream)
        try:
            if self._draining:
                stream.stop_reading()
            await stream.run(context)
        finally:
            self._streams.discard(stream)

    async def drain(self) -> None:
        """Take no further items; streams end once the ones at work are answered."""
        self._draining = True
        for stream in self._streams:
            stream.stop_reading()

    def close(self) -> bool:
        """Let go of the worker threads; False when one of them is still busy with a function that does not return."""
        return self._threads.close()

    def seconds(self, timeout_s: float) -> float:
        """How long an item that asks for `timeout_s` may take."""
        return min(timeout_s, self.limits.max_deadline_s) if timeout_s > 0 else self.limits.max_deadline_s

    async def settle(self, request: RequestT, request_id: str) -> ResponseT | Status:
        """The response, or the error that the item ends with. Lets cancellation through."""
        try:
            response = await self.handle(request)
        except Status as status:
            log.log(logging.WARNING if status.code == "UNKNOWN" else logging.INFO, "%s: %s: %s", request_id, status.code, status.message)
            return status
        except BaseException as error:  # whatever a handler calls must not end the server
            if is_asked_for(error):
                raise
            log.error("%s: the server failed", request_id, exc_info=error)
            return Status("INTERNAL", f"{type(error).__name__}: {message_of(error)}")
        return response


@dataclass(slots=True)
class _UnaryCall:
    """size: bytes that it holds, of its request while it is at work, then of its answer."""

    size: int


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The id the client gave in the metadata `burnish-request-id`, or a new one."""
    with contextlib.suppress(StopIteration):
        return str(next(value for key, value in context.invocation_metadata() or () if key == "burnish-request-id"))
    return uuid.uuid4().hex
