"""The server side of one stream of batches: what is read of it begins at once, and results go out in batches, as its client takes them."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from .bounds import TooManyParts
from .errors import CODES, Status
from .held import HeldBytes, HeldShare
from .methods import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE_BYTES, BatchedMethod
from .transport.deadlines import Deadlines

CANCEL_GRACE_S = 2.0
LEAVE_S = 5.0
"""How long a stream that has said it stops waits for its client to leave. A socket that is closed while there is something unread in it is
reset, and then a client that is slow to read loses what was said last."""
MOST_ITEMS = 4 * BATCH_ITEMS
"""Of one message of a stream: all of them are begun before the next message is read, and millions fit into one."""
MOST_ID = 200
"""Characters of a request_id: it is kept with its item and sent back with the result. What burnish sends has some thirty."""
ALONE_BYTES = 1024
"""Of a message beyond what is counted of an item in it; where there is more, the request is copied out of it."""
UNTAKEN_S = 180.0
"""How long a stream waits for its client to take a message of results before it ends, and lets go of what it holds."""
SHARE_ITEMS = 32  # after so many results, those go out while the next are worked out: both sides then have something to do


class ItemHandler(Protocol):
    """What answers the items of streams."""

    method: BatchedMethod[Any, Any]
    held: HeldBytes

    @property
    def max_in_flight(self) -> int:
        """Items at work on one stream."""

    def seconds(self, timeout_s: float) -> float:
        """How long an item that asks for `timeout_s` may take."""

    async def settle(self, request: Any, request_id: str) -> Any:
        """The response, or the Status that the item ends with."""


class ServedStream:
    """One open stream: a reader hands items to workers, which leave results in `_outbox`; the stream's own coroutine writes them.

    A worker is a task. It goes from item to item, a share of them, while handlers return without waiting for anything; once one waits, that
    task is the item's own, and the next worker takes over. So an item that needs no task, no deadline and no cancellation costs none.
    """

    def __init__(self, handler: ItemHandler, requests: AsyncIterator[Any]) -> None:
        self.handler = handler
        self.items: dict[str, _Worker] = {}  # what is at work, by request_id
        self.todo: deque[Any] = deque()
        self._method = handler.method
        self.unread = 0  # results made and not taken by the client
        self._outbox: list[tuple[str, Any, int]] = []  # with the bytes that it holds
        self._held = HeldShare(handler.held)
        self._untaken = 0  # bytes of the results that are not taken
        self._writing = 0  # bytes of those on their way
        self._message_bytes = 0  # of the message whose items begin
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
        """Take nothing more: the stream ends once what is at work is answered."""
        self._draining = True
        self._reader.cancel()

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve until the client ends the stream or goes away, or until it is ended here."""
        try:
            refusal = await self._serve(context)
            if refusal is None and not self._reader.cancelled():
                refusal = self._reader.result()  # an error while reading is this stream's error
            if refusal is not None:
                await context.abort(grpc_code(refusal), refusal.message)
        finally:
            self._held.give_back(self._writing)  # a message that gRPC has stays until the client has left

    async def _serve(self, context: grpc.aio.ServicerContext[Any, Any]) -> Status | None:
        """Write results until the last. Returns why it ended before that, if it did."""
        try:
            while self._outbox or self.items or not self._reader.done():
                await self._wake.wait()
                self._wake.clear()
                if self.items:
                    await asyncio.sleep(0)  # whatever else finishes in this tick joins the batch
                while self._outbox:
                    if not await self._write(context):
                        return Status("RESOURCE_EXHAUSTED", f"the client took no results for {UNTAKEN_S:g} s")
            if self._draining:  # a client whose write meets the end of the stream is not told by gRPC how it ended
                await context.write(self._method.results(stopping=True))
                await asyncio.sleep(LEAVE_S)  # ended by the client's leaving, which cancels this
            return None
        finally:
            left = [self._reader, *(worker.task for worker in self.items.values())]
            for task in left:
                task.cancel()
            self._deadlines.close()
            await asyncio.wait(left, timeout=CANCEL_GRACE_S)
            self._over = True
            self._held.give_back(sum(size for _, _, size in self._outbox))
            self._outbox.clear()

    async def _write(self, context: grpc.aio.ServicerContext[Any, Any]) -> bool:
        """Write a batch of the outbox; whether the client took it."""
        batch, self._outbox = self._outbox[:BATCH_ITEMS], self._outbox[BATCH_ITEMS:]
        self._writing = sum(size for _, _, size in batch)
        for message in self._messages([(request_id, outcome) for request_id, outcome, _ in batch]):
            waiting = asyncio.timeout(UNTAKEN_S)
            try:
                async with waiting:
                    await context.write(message)
            except TimeoutError:
                if not waiting.expired():
                    raise
                kept = min(message.ByteSize(), self._writing)
                self._held.give_back(self._writing - kept)
                self._writing = kept
                return False
        self._held.give_back(self._writing)
        self._untaken -= self._writing
        self._writing = 0
        self.unread -= len(batch)
        self._make_room()
        return True

    async def _read(self, requests: AsyncIterator[Any]) -> Status | None:
        """Why nothing more of this client is read, None where it has nothing more."""
        try:
            async for message in requests:
                if len(message.items) > MOST_ITEMS:
                    return Status("INVALID_ARGUMENT", f"a message of a stream holds at most {MOST_ITEMS} items, not {len(message.items)}")
                if any(len(item.request_id) > MOST_ID for item in message.items):
                    return Status("INVALID_ARGUMENT", f"a request_id has at most {MOST_ID} characters")
                await self._begin(message)
                del message  # its memory is not to wait with what comes
                await self._room.wait()  # what a client does not read makes it wait with what it sends
        except TooManyParts as error:
            return Status("INVALID_ARGUMENT", str(error))
        return None

    async def _begin(self, message: Any) -> None:
        received = self._loop.time()
        self.todo.extend(message.items)
        self._message_bytes = message.ByteSize()
        try:
            await self._start_all(received)
        except asyncio.CancelledError:
            if self._draining:  # what was received is begun
                await self._start_all(received)
            raise

    def _make_room(self) -> None:
        """Have more of the stream read, unless what is not taken is too much already."""
        if self.unread >= self.handler.max_in_flight or self._held.crowded(self._untaken):
            self._room.clear()
        else:
            self._room.set()

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
        if kind == "request" and running is None and request_id and len(self.items) < self.handler.max_in_flight:
            size = message.request.ByteSize() + len(request_id)
            if self._held.take(size):
                return self._alone(message.request, size), size
            self.answer(request_id, Status("RESOURCE_EXHAUSTED", self.handler.held.full))
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

    def _alone(self, request: Any, size: int) -> Any:
        """The request in memory of its own, where its message holds much else: protobuf keeps a message as long as anything in it."""
        if self._message_bytes <= size + ALONE_BYTES:
            return request
        copy = self._method.request()
        copy.CopyFrom(request)
        return copy

    def watch(self, worker: _Worker, deadline: float) -> None:
        worker.slot = self._deadlines.add(worker, deadline)

    def finish(self, worker: _Worker, outcome: Any) -> None:
        """The item of a worker is at its end: with a response, a Status, or None when it was cancelled."""
        if worker.late:
            outcome = late(worker.seconds)
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
        size = len(request_id) + (len(outcome.message) if isinstance(outcome, Status) else outcome.ByteSize())
        if not self._held.take(size):
            size, outcome = 0, self._without_room(outcome)
        self._outbox.append((request_id, outcome, size))
        self.unread += 1
        self._untaken += size
        self._make_room()
        if not self._wake.is_set():
            self._wake.set()

    def _without_room(self, outcome: Any) -> Status:
        """What is said in place of a result that finds no room. Of one whose work is done, not RESOURCE_EXHAUSTED: that has a client send
        it again, and it may not be done twice."""
        if isinstance(outcome, Status):
            return Status(outcome.code, outcome.message[:MOST_ID])
        return Status("UNAVAILABLE", self.handler.held.unread)

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

    def __init__(self, stream: ServedStream) -> None:
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


def grpc_code(status: Status) -> grpc.StatusCode:
    """The code of a status, as gRPC has it."""
    return next(code for code in grpc.StatusCode if code.value[0] == CODES[status.code])


def late(seconds: float) -> Status:
    """How an item ends whose deadline passed."""
    return Status("DEADLINE_EXCEEDED", f"no result within {round(seconds, 3):g} s")  # what is left of a deadline has many digits
