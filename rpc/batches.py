"""The server side of a batched method: one handler function behind both the unary call and the stream.

An item is a task of its own with its own deadline. A cancel item, a passed deadline and a client that went away cancel that task, and
with it the user's function: an async one gets CancelledError, a sync one (in a thread, which nobody can stop) can ask `cancelled()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from .errors import CODES, Status
from .methods import MAX_MESSAGE_BYTES, BatchedMethod, RequestT, ResponseT, take_batch

log = logging.getLogger("burnish.rpc")
T = TypeVar("T")

CANCEL_GRACE_S = 2.0

_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("burnish_cancelled", default=None)


def cancelled() -> bool:
    """For long sync tools and verifiers: whether the caller gave up on the call that this thread works for."""
    event = _cancelled.get()
    return event is not None and event.is_set()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one service takes on.

    max_deadline_s: longest deadline of an item, and the deadline of one that has none. max_in_flight: items at work on one stream;
    more are refused with RESOURCE_EXHAUSTED. threads: sync functions running at a time; more wait, their deadlines ticking.
    """

    max_deadline_s: float = 600.0
    max_in_flight: int = 8192
    threads: int = 32


class BatchedHandler(Generic[RequestT, ResponseT]):
    """Serves one `BatchedMethod` with `handle(request) -> response`, which raises `Status` for a typed error."""

    def __init__(
        self, method: BatchedMethod[RequestT, ResponseT], handle: Callable[[RequestT], Awaitable[ResponseT]], limits: Limits | None = None
    ) -> None:
        self.method = method
        self.handle = handle
        self.limits = limits or Limits()
        self._executor = ThreadPoolExecutor(self.limits.threads, thread_name_prefix="burnish-handler")
        self._streams: set[_Stream] = set()
        self._draining = False

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run a sync function in a worker thread, `cancelled()` telling it when the awaiting task was cancelled."""
        event = threading.Event()
        context = contextvars.copy_context()
        context.run(_cancelled.set, event)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, function, *args)
        except asyncio.CancelledError:
            event.set()
            raise

    async def unary(self, request: RequestT, context: grpc.aio.ServicerContext[Any, Any]) -> ResponseT:
        """Serve one unary call; errors become gRPC statuses."""
        request_id = _request_id(context)
        context.set_trailing_metadata((("burnish-request-id", request_id),))
        remaining: float | None = context.time_remaining()  # type: ignore[no-untyped-call,unused-ignore]
        outcome = await self._settle(request, remaining or 0.0, request_id)
        if isinstance(outcome, Status):
            status = next(code for code in grpc.StatusCode if code.value[0] == CODES[outcome.code])
            await context.abort(status, outcome.message)
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
        self._executor.shutdown(wait=False, cancel_futures=True)
        return not any(thread.is_alive() for thread in self._busy_threads())

    def _busy_threads(self) -> list[threading.Thread]:
        threads = list(self._executor._threads)
        for thread in threads:
            thread.join(0.1)
        return threads

    async def _settle(self, request: RequestT, timeout_s: float, request_id: str) -> ResponseT | Status:
        """The response within the deadline, or the error that the item ends with. Lets cancellation through."""
        seconds = min(timeout_s, self.limits.max_deadline_s) if timeout_s > 0 else self.limits.max_deadline_s
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                response = await self.handle(request)
        except Status as status:
            log.log(logging.WARNING if status.code == "UNKNOWN" else logging.INFO, "%s: %s: %s", request_id, status.code, status.message)
            return status
        except TimeoutError as error:
            if not deadline.expired():
                return self._internal(request_id, error)
            return Status("DEADLINE_EXCEEDED", f"no result within {seconds:g} s")
        except Exception as error:
            return self._internal(request_id, error)
        if response.ByteSize() + 1024 > MAX_MESSAGE_BYTES:
            return Status("RESOURCE_EXHAUSTED", f"the result has {response.ByteSize()} bytes; the limit is {MAX_MESSAGE_BYTES}")
        return response

    def _internal(self, request_id: str, error: Exception) -> Status:
        log.error("%s: the server failed", request_id, exc_info=error)
        return Status("INTERNAL", f"{type(error).__name__}: {error}")


class _Stream:
    """One open stream: a reader starts a task per item, tasks leave results in `_outbox`, the stream's own coroutine writes them."""

    def __init__(self, handler: BatchedHandler[Any, Any], requests: AsyncIterator[Any]) -> None:
        self._handler = handler
        self._method = handler.method
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outbox: list[Any] = []
        self._wake = asyncio.Event()
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._wake.set())

    def stop_reading(self) -> None:
        self._reader.cancel()

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            while self._outbox or self._tasks or not self._reader.done():
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(0)  # whatever else finishes in this tick joins the batch
                while batch := take_batch(self._outbox):
                    await context.write(self._method.results(results=batch))
        finally:
            left = [self._reader, *self._tasks.values()]
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CANCEL_GRACE_S)
        if not self._reader.cancelled():
            self._reader.result()  # an error while reading is this stream's error

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for message in requests:
            for item in message.items:
                self._take(item)

    def _take(self, item: Any) -> None:
        running = self._tasks.get(item.request_id)
        match item.WhichOneof("kind"):
            case "cancel":
                if running is not None:
                    running.cancel()
            case "request" if not item.request_id or running is not None:
                self._answer(item.request_id, Status("INVALID_ARGUMENT", "request_id must be set, and unique among the items in flight"))
            case "request" if len(self._tasks) >= self._handler.limits.max_in_flight:
                self._answer(item.request_id, Status("RESOURCE_EXHAUSTED", f"{len(self._tasks)} items are in flight on this stream"))
            case "request":
                task = asyncio.create_task(self._work(item))
                self._tasks[item.request_id] = task
                task.add_done_callback(lambda done: self._finish(item.request_id, done))
            case _:
                self._answer(item.request_id, Status("INVALID_ARGUMENT", "an item is a request or a cancel"))

    async def _work(self, item: Any) -> None:
        self._answer(item.request_id, await self._handler._settle(item.request, item.timeout_s, item.request_id))

    def _finish(self, request_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[request_id]
        if task.cancelled():
            self._answer(request_id, Status("CANCELLED", "cancelled by the client"))

    def _answer(self, request_id: str, outcome: Any) -> None:
        if isinstance(outcome, Status):
            error = {"code": CODES[outcome.code], "message": outcome.message}
            self._outbox.append(self._method.result(request_id=request_id, error=error))
        else:
            self._outbox.append(self._method.result(request_id=request_id, response=outcome))
        self._wake.set()


def _request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The id the client gave in the metadata `burnish-request-id`, or a new one."""
    with contextlib.suppress(StopIteration):
        return str(next(value for key, value in context.invocation_metadata() or () if key == "burnish-request-id"))
    return uuid.uuid4().hex
