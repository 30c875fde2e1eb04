"""The server side of a batched method: one handler function behind both the unary call and the stream.

An item that has to wait for something is a task of its own with its own deadline. A cancel item, a passed deadline and a client that
went away cancel that task, and with it the user's function: an async one gets CancelledError, a sync one (in a thread, which nobody can
stop) can ask `cancelled()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from .bounds import TooManyParts
from .errors import CODES, Status
from .held import COUNTED_BYTES, HeldBytes, counted
from .methods import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE_BYTES, BatchedMethod, RequestT, ResponseT
from .threads import Threads, cancelled
from .transport.deadlines import Deadlines
from .user_code import is_asked_for, message_of

__all__ = ["BatchedHandler", "Limits", "cancelled"]

log = logging.getLogger("burnish.rpc")
T = TypeVar("T")

CANCEL_GRACE_S = 2.0
AT_ONCE_BYTES = 256 << 10
"""Of a request that is read on the event loop: such a one may hold it for a part of a second, and one of 64 MiB for a minute."""
LEAVE_S = 5.0
"""How long a stream that has said it stops waits for its client to leave. A socket that is closed while there is something unread in it is
reset, and then a client that is slow to read loses what was said last."""
MOST_ITEMS = 4 * BATCH_ITEMS
"""Of one message of a stream: all of them are begun before the next message is read, and millions fit into one."""
SHARE_ITEMS = 32  # after so many results, those go out while the next are worked out: both sides then have something to do


@dataclass(frozen=True, slots=True)
class Limits:
    """What one service takes on.

    max_deadline_s: longest deadline of an item, and the deadline of one that has none. max_in_flight: items at work on one stream, and
    unary calls at work; more are refused with RESOURCE_EXHAUSTED. While so many results wait for a client that does not read them, nothing
    more of its stream is read. threads: sync functions running at a time; more wait, their deadlines ticking. max_bytes: of
    large requests at work and of large results that no client has read, half of them one stream's at most: more are refused with
    RESOURCE_EXHAUSTED, and a result with DATA_LOSS.
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
        self._streams: set[_Stream] = set()
        self._unary = 0
        self._draining = False
        self.held = HeldBytes(self.limits.max_bytes)

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
        size = counted(request)
        if not self.held.take(size):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self.held.full)
        remaining: float | None = context.time_remaining()  # type: ignore[no-untyped-call,unused-ignore]
        seconds = self.seconds(remaining or 0.0)
        deadline = asyncio.timeout(seconds)
        self._unary += 1
        try:
            async with deadline:
                outcome = await self.settle(request, request_id)
        except TimeoutError:
            if not deadline.expired():
                raise
            outcome = _late(seconds)
        finally:
            self._unary -= 1
            self.held.give_back(size)
        if isinstance(outcome, Status):
            await context.abort(_grpc_code(outcome), outcome.message)
        assert not isinstance(outcome, Status)
        return outcome

    async def stream(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve one stream until the client ends it, goes away, or this server drains."""
        stream = _Stream(self, requests)
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


class _Stream:
    """One open stream: a reader hands items to workers, which leave results in `_outbox`; the stream's own coroutine writes them.

    A worker is a task. It goes from item to item, a share of them, while handlers return without waiting for anything; once one waits, that
    task is the item's own, and the next worker takes over. So an item that needs no task, no deadline and no cancellation costs none.
    """

    def __init__(self, handler: BatchedHandler[Any, Any], requests: AsyncIterator[Any]) -> None:
        self.handler = handler
        self.items: dict[str, _Worker] = {}  # what is at work, by request_id
        self.todo: deque[Any] = deque()
        self._method = handler.method
        self.unread = 0  # results made and not taken by the client
        self._outbox: list[tuple[str, Any, int]] = []  # with the bytes that it holds
        self._held = HeldBytes(handler.limits.max_bytes // 2, handler.held)
        self._apart = False  # whether what is kept of an item must not keep its whole message
        self._over = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines[_Worker] = Deadlines(self._loop, _Worker.expire)
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._wake.set())

    def stop_reading(self) -> None:
        self._draining = True
        self._reader.cancel()

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            while self._outbox or self.items or not self._reader.done():
                await self._wake.wait()
                self._wake.clear()
                if self.items:
                    await asyncio.sleep(0)  # whatever else finishes in this tick joins the batch
                while self._outbox:
                    batch, self._outbox = self._outbox[:BATCH_ITEMS], self._outbox[BATCH_ITEMS:]
                    try:
                        for message in self._messages([(request_id, outcome) for request_id, outcome, _ in batch]):
                            await context.write(message)
                    finally:
                        self._held.give_back(sum(size for _, _, size in batch))
                    self.unread -= len(batch)
                    if self.unread < self.handler.limits.max_in_flight:
                        self._room.set()
            if self._draining:  # a client whose write meets the end of the stream is not told by gRPC how it ended
                await context.write(self._method.results(stopping=True))
                await asyncio.sleep(LEAVE_S)  # ended by the client's leaving, which cancels this
        finally:
            left = [self._reader, *(worker.task for worker in self.items.values())]
            for task in left:
                task.cancel()
            self._deadlines.close()
            await asyncio.wait(left, timeout=CANCEL_GRACE_S)
            self._over = True
            self._held.give_back(sum(size for _, _, size in self._outbox))
        if not self._reader.cancelled() and (refusal := self._reader.result()) is not None:  # an error while reading is this stream's error
            await context.abort(_grpc_code(refusal), refusal.message)

    async def _read(self, requests: AsyncIterator[Any]) -> Status | None:
        """Why nothing more of this client is read, None where it has nothing more."""
        try:
            async for message in requests:
                if len(message.items) > MOST_ITEMS:
                    return Status("INVALID_ARGUMENT", f"a message of a stream holds at most {MOST_ITEMS} items, not {len(message.items)}")
                await self._begin(message)
        except TooManyParts as error:
            return Status("INVALID_ARGUMENT", str(error))
        return None

    async def _begin(self, message: Any) -> None:
        received = self._loop.time()
        self.todo.extend(message.items)
        self._apart = len(message.items) > 1 and message.ByteSize() > COUNTED_BYTES
        try:
            await self._start_all(received)
        except asyncio.CancelledError:
            if self._draining:  # what was received is begun
                await self._start_all(received)
            raise
        await self._room.wait()  # what a client does not read makes it wait with what it sends

    async def _start_all(self, received: float) -> None:
        """Have every item of `todo` make its first step. Those that wait afterwards are watched; the others are done."""
        count = 1
        while self.todo:
            workers = [_Worker(self) for _ in range(min(count, len(self.todo)))]
            await asyncio.sleep(0)
            for worker in workers:
                if worker.request_id and not worker.task.done():
                    worker.watch(received)
            count *= 2  # handlers that wait seldom do so alone

    def take(self, message: Any) -> tuple[Any, int] | None:
        """The request that is to be handled now and the bytes that it holds, or None: then the item is answered, or was about another
        one."""
        request_id = message.request_id
        kind = message.WhichOneof("kind")
        running = self.items.get(request_id)
        if kind == "request" and running is None and request_id and len(self.items) < self.handler.limits.max_in_flight:
            size = counted(message.request)
            if self._held.take(size):
                return self._alone(message.request), size
            self.answer(request_id, Status("RESOURCE_EXHAUSTED", self._held.full))
        elif kind == "cancel":
            if running is not None:
                running.task.cancel()
        elif kind != "request":
            self.answer(request_id, Status("INVALID_ARGUMENT", "an item is a request or a cancel"))
        elif not request_id or running is not None:
            self.answer(request_id, Status("INVALID_ARGUMENT", "request_id must be set, and unique among the items in flight"))
        else:
            self.answer(request_id, Status("RESOURCE_EXHAUSTED", f"{len(self.items)} items are in flight on this stream"))
        return None

    def _alone(self, request: Any) -> Any:
        """The request in memory of its own, where it came with others: protobuf keeps a message as long as anything in it."""
        if not self._apart:
            return request
        copy = self._method.request()
        copy.CopyFrom(request)
        return copy

    def watch(self, worker: _Worker, deadline: float) -> None:
        worker.slot = self._deadlines.add(worker, deadline)

    def finish(self, worker: _Worker, outcome: Any) -> None:
        """The item of a worker is at its end: with a response, a Status, or None when it was cancelled."""
        if worker.late:
            outcome = _late(worker.seconds)
        elif outcome is None:
            outcome = Status("CANCELLED", "cancelled by the client")
        del self.items[worker.request_id]
        self._held.give_back(worker.size)
        if worker.slot:
            self._deadlines.discard(worker, worker.slot)
        self.answer(worker.request_id, outcome)

    def answer(self, request_id: str, outcome: Any) -> None:
        """Send the result of an item: a response, or a Status."""
        if self._over:
            return
        size = 0 if isinstance(outcome, Status) else counted(outcome)
        if not self._held.take(size):
            size, outcome = 0, Status("DATA_LOSS", f"the result has no room: {self._held.full}")
        self._outbox.append((request_id, outcome, size))
        self.unread += 1
        if self.unread >= self.handler.limits.max_in_flight:
            self._room.clear()
        if not self._wake.is_set():
            self._wake.set()

    def _messages(self, batch: list[tuple[str, Any]]) -> list[Any]:
        """The messages that carry a batch: one, or more of them when it is large. A result too large for any becomes an error."""
        message = self._method.results()
        for request_id, outcome in batch:  # added in place: protobuf copies what a constructor is given
            if isinstance(outcome, Status):
                message.results.add(request_id=request_id, error={"code": CODES[outcome.code], "message": outcome.message})
            else:
                message.results.add(request_id=request_id, response=outcome)
        size = message.ByteSize()
        if size > BATCH_BYTES and len(batch) > 1:
            half = len(batch) // 2
            return self._messages(batch[:half]) + self._messages(batch[half:])
        if size + 1024 > MAX_MESSAGE_BYTES:
            large = Status("DATA_LOSS", f"the result has {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
            return self._messages([(batch[0][0], large)])
        return [message]


class _Worker:
    """A task that handles items until one of them waits. request_id: the item at hand. size: bytes that it holds. slot: where its
    deadline is watched, if it waits."""

    __slots__ = ("_stream", "late", "request_id", "seconds", "size", "slot", "task")

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.request_id = ""
        self.seconds = 0.0
        self.size = 0
        self.slot = 0
        self.late = False
        self.task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        stream, settle, context = self._stream, self._stream.handler.settle, contextvars.copy_context()
        for _ in range(SHARE_ITEMS):
            if not stream.todo:
                return
            message = stream.todo.popleft()
            taken = stream.take(message)
            if taken is None:
                continue
            request, self.size = taken
            self.request_id, self.seconds = message.request_id, message.timeout_s
            stream.items[self.request_id] = self
            outcome: Any = None
            try:
                outcome = await settle(request, self.request_id)
            finally:
                stream.finish(self, outcome)
            # One task for several items must not let them see each other: neither a cancellation nor a context variable.
            if self.slot or contextvars.copy_context() != context:
                return
            self.request_id = ""

    def watch(self, received: float) -> None:
        """The item waits for something: from here on it has a deadline, and can be cancelled."""
        self.seconds = self._stream.handler.seconds(self.seconds)
        self._stream.watch(self, received + self.seconds)

    def expire(self) -> None:
        self.late = True
        self.task.cancel()


def _grpc_code(status: Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == CODES[status.code])


def _late(seconds: float) -> Status:
    return Status("DEADLINE_EXCEEDED", f"no result within {round(seconds, 3):g} s")  # what is left of a deadline has many digits


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The id the client gave in the metadata `burnish-request-id`, or a new one."""
    with contextlib.suppress(StopIteration):
        return str(next(value for key, value in context.invocation_metadata() or () if key == "burnish-request-id"))
    return uuid.uuid4().hex
