"""The client of the batched services, for sync threads and async code alike.

Calls from anywhere in the process to one method of one address share one stream. Whatever became ready in the same tick of the
background loop travels in one message. Each call has a deadline, kept on both sides; cancelling a call cancels it on the server. When
the stream breaks, the calls in flight end with `RpcUnavailable` and the next call connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc

from .background import Background, background
from .errors import CODES, RpcError, RpcRemoteError, RpcTimeout, RpcUnavailable, error_from
from .methods import MAX_MESSAGE_BYTES, BatchedMethod, RequestT, ResponseT, take_batch

T = TypeVar("T")

CONNECT_S = 5.0
LOOP_GRACE_S = 5.0  # how much later than the call's deadline a blocked thread gives up on a background loop that does not answer
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel must not inherit the backoff of one that broke
    ("grpc.enable_http_proxy", 0),
)


@dataclass(slots=True)
class StreamCounts:
    """What went over the stream so far: connections made, items and batches sent, results and batches received."""

    connections: int = 0
    items_sent: int = 0
    batches_sent: int = 0
    results_received: int = 0
    batches_received: int = 0


class BatchedClient(Generic[RequestT, ResponseT]):
    """Calls one batched method of the service at `address` ("127.0.0.1:50051").

    Cheap to make and to pickle: it holds the address; the connection belongs to the process and is made by its first call.
    Example: `BatchedClient("127.0.0.1:50051", VERIFY).call_blocking(request, timeout_s=10.0)`.
    """

    def __init__(self, address: str, method: BatchedMethod[RequestT, ResponseT], connect_timeout_s: float = CONNECT_S) -> None:
        check_address(address)
        self.address = address
        self.method = method
        self.connect_timeout_s = connect_timeout_s

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.address, self.method.path, self.connect_timeout_s)

    async def call(self, request: RequestT, timeout_s: float) -> ResponseT:
        """The response. Raises RpcUnavailable, RpcTimeout or RpcRemoteError. Cancelling the await cancels the call on the server."""
        return cast(ResponseT, await asyncio.wrap_future(self._submit(request, timeout_s)))

    def call_blocking(self, request: RequestT, timeout_s: float) -> ResponseT:
        """`call` for threads without an event loop."""
        background().check_thread()
        future = self._submit(request, timeout_s)
        try:
            return cast(ResponseT, future.result(timeout_s + LOOP_GRACE_S))
        except FutureTimeout:
            raise RpcTimeout(self.address, f"no answer within {timeout_s:g} s, and the client's own loop is stuck") from None
        finally:
            future.cancel()  # no effect on a finished call; withdraws it when this thread is interrupted

    def counts(self) -> StreamCounts:
        """Traffic of the shared stream in this process."""
        return self._connection(background()).counts

    def _submit(self, request: RequestT, timeout_s: float) -> Future[Any]:
        assert timeout_s > 0, "a call needs a positive deadline"
        home = background()
        connection = self._connection(home)
        future: Future[Any] = Future()
        home.loop.call_soon_threadsafe(connection.submit, request, timeout_s, future)
        return future

    def _connection(self, home: Background) -> _Connection:
        key = (self.address, self.method.path, self.connect_timeout_s)
        connection = home.shared.get(key)
        if connection is None:
            connection = home.shared.setdefault(key, _Connection(self.address, self.method, self.connect_timeout_s, home.loop))
        return cast(_Connection, connection)


def _unpickle(address: str, path: str, connect_timeout_s: float) -> BatchedClient[Any, Any]:
    from . import methods

    method = next(m for m in (methods.VERIFY, methods.CALL, methods.EPISODE) if m.path == path)
    return BatchedClient(address, cast(BatchedMethod[Any, Any], method), connect_timeout_s)


@dataclass(eq=False, slots=True)
class _Pending:
    request_id: str
    item: Any
    deadline: float
    timeout_s: float
    future: Future[Any]
    timer: asyncio.TimerHandle
    sent: bool = False

    def finish(self, result: Any) -> None:
        self.timer.cancel()
        if self.future.set_running_or_notify_cancel():
            if isinstance(result, BaseException):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)


class _Connection:
    """The stream to one method of one address. Everything but `__init__` runs on the background loop.

    `_run` lives as long as one stream: it opens a channel, then a writer takes from `_outbox` (woken by `submit`) and a reader
    resolves `_pending`. It ends when the stream breaks, and is started again by whatever still waits or by the next `submit`.
    """

    def __init__(self, address: str, method: BatchedMethod[Any, Any], connect_timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.counts = StreamCounts()
        self._address = address
        self._method = method
        self._connect_timeout_s = connect_timeout_s
        self._loop = loop
        self._ids = itertools.count()
        self._client_id = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._pending: dict[str, _Pending] = {}
        self._outbox: list[Any] = []
        self._wake = asyncio.Event()
        self._open = False
        self._runner: asyncio.Task[None] | None = None

    def submit(self, request: Any, timeout_s: float, future: Future[Any]) -> None:
        request_id = f"{self._client_id}-{next(self._ids)}"
        item = self._method.item(request_id=request_id, timeout_s=timeout_s, request=request)
        deadline = self._loop.time() + timeout_s
        timer = self._loop.call_at(deadline, self._expire, request_id)
        pending = _Pending(request_id, item, deadline, timeout_s, future, timer)
        if item.ByteSize() + 1024 > MAX_MESSAGE_BYTES:
            message = f"the request has {item.ByteSize()} bytes; the limit is {MAX_MESSAGE_BYTES}"
            pending.finish(RpcRemoteError(self._address, message, CODES["RESOURCE_EXHAUSTED"]))
            return
        self._pending[request_id] = pending
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._withdraw, request_id) if done.cancelled() else None)
        self._send(item)

    def _send(self, item: Any) -> None:
        self._outbox.append(item)
        self._wake.set()
        if self._runner is None:
            self._runner = self._loop.create_task(self._run())

    def _expire(self, request_id: str) -> None:
        pending = self._pending.get(request_id)
        if pending is None:
            return
        if self._open:
            error: RpcError = RpcTimeout(self._address, f"no answer within {pending.timeout_s:g} s")
        else:
            error = RpcUnavailable(self._address, f"could not connect within {pending.timeout_s:g} s; is the service running?")
        self._withdraw(request_id)
        pending.finish(error)

    def _withdraw(self, request_id: str) -> None:
        """Forget a call; if the server has it, tell the server to cancel it."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return
        pending.timer.cancel()
        if not pending.sent:
            self._outbox.remove(pending.item)
        elif self._open:
            self._send(self._method.item(request_id=request_id, cancel={}))

    async def _run(self) -> None:
        reason, connected = "the client was closed", False
        try:
            async with grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
                await _ready(channel, self._address, self._connect_timeout_s)
                connected = True
                reason = await self._exchange(channel)
        except RpcUnavailable as error:
            reason = error.message
        except asyncio.CancelledError:
            connected = False
            raise
        finally:
            self._open = False
            self._runner = None
            self._drop(f"the connection broke: {reason}" if connected else reason, everything=not connected)

    def _drop(self, reason: str, everything: bool) -> None:
        """Fail what the server had (or everything, when there was no server), and reconnect for the rest."""
        for pending in [p for p in self._pending.values() if p.sent or everything]:
            del self._pending[pending.request_id]
            pending.finish(RpcUnavailable(self._address, reason))
        self._outbox = [pending.item for pending in self._pending.values()]
        if self._outbox:
            self._runner = self._loop.create_task(self._run())

    async def _exchange(self, channel: grpc.aio.Channel) -> str:
        """Write and read until the stream ends; returns why it did."""
        method = self._method
        open_stream: Any = channel.stream_stream(
            method.path, request_serializer=method.items.SerializeToString, response_deserializer=method.results.FromString
        )
        call = open_stream(metadata=(("burnish-request-id", self._client_id),))
        self._open = True
        self.counts.connections += 1
        reader = self._loop.create_task(self._read(call))
        writer = self._loop.create_task(self._write(call))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({reader}, timeout=1.0)  # when writing failed first, reading knows why
            return reader.result() if reader.done() else f"writing failed: {writer.exception()}"
        finally:
            self._open = False
            call.cancel()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # whatever else is ready in this tick joins the batch
            while batch := take_batch(self._outbox):
                now = self._loop.time()
                for item in batch:
                    pending = self._pending.get(item.request_id)
                    if pending is not None:
                        pending.sent = True
                        item.timeout_s = max(pending.deadline - now, 0.001)
                self.counts.items_sent += len(batch)
                self.counts.batches_sent += 1
                await call.write(self._method.items(items=batch))

    async def _read(self, call: Any) -> str:
        try:
            async for message in call:
                self.counts.batches_received += 1
                self.counts.results_received += len(message.results)
                for result in message.results:
                    self._resolve(result)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "the server closed the stream"

    def _resolve(self, result: Any) -> None:
        pending = self._pending.pop(result.request_id, None)
        if pending is None:
            return  # withdrawn meanwhile
        match result.WhichOneof("outcome"):
            case "response":
                pending.finish(result.response)
            case "error":
                pending.finish(error_from(self._address, result.error.code, result.error.message))
            case _:
                pending.finish(RpcRemoteError(self._address, "the service sent a result without outcome", CODES["INTERNAL"]))


def unary_blocking(address: str, call: Callable[[grpc.aio.Channel, float], Awaitable[T]], timeout_s: float) -> T:
    """One unary call on a channel of its own, connection included within `timeout_s` seconds.

    `call` gets the channel and the seconds left. Raises RpcUnavailable, RpcTimeout or RpcRemoteError.
    """
    check_address(address)

    async def run() -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            await _ready(channel, address, timeout_s)
            try:
                return await call(channel, max(deadline - loop.time(), 0.001))
            except grpc.aio.AioRpcError as error:
                raise error_from(address, error.code().value[0], error.details() or error.code().name) from None

    return background().run(run(), timeout_s + LOOP_GRACE_S)


async def _ready(channel: grpc.aio.Channel, address: str, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(channel.channel_ready(), timeout_s)
        return
    raise RpcUnavailable(address, f"could not connect within {timeout_s:g} s; is the service running?")


def check_address(address: str) -> None:
    """Raise ValueError unless `address` reads host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"address {address!r} must read host:port, for example 127.0.0.1:50051")
