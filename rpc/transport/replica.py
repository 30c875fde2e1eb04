"""One replica of a service, as a client sees it: a stream that carries the calls given to it, or unary calls when it has no stream.

Everything here runs on the background loop. `_run` lives as long as one connection: it opens a channel, then a writer takes from
`_outbox` (woken by `send`) and a reader resolves `calls`.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from ..address import Target
from ..errors import CODES, RpcRefused, RpcRemoteError, RpcUnavailable, error_from
from ..methods import BATCH_BYTES, BATCH_ITEMS, MAX_MESSAGE_BYTES, BatchedMethod
from ..security import ClientSecurity
from .channels import call_error, channel_ready, open_channel, token_metadata

REASON_S = 3.0
UNARY_AT_A_TIME = 256  # of one replica; more wait their turn, their deadlines ticking


@dataclass(slots=True)
class StreamCounts:
    """What went over the streams so far: connections made, items and batches sent, results and batches received; calls made unary."""

    connections: int = 0
    items_sent: int = 0
    batches_sent: int = 0
    results_received: int = 0
    batches_received: int = 0
    unary_calls: int = 0


class Waiter(Protocol):
    """Brings the result of a call to whoever waits for it."""

    def deliver(self, future: Any, result: Any) -> None:
        """Settle the future with a response or an exception; called on the background loop, once per call."""
        ...


class Pin:
    """A session that lives on one replica: its first call goes to the one with the fewest sessions, the others follow it there.

    A session counts until its pin is let go.
    """

    __slots__ = ("__weakref__", "target")

    def __init__(self) -> None:
        self.target: Target | None = None


class Call:
    """One call on its way. deadline: on the background loop's clock, 0 before it is submitted. slot: where the deadline is watched.

    replica: who has it. sent: whether that replica's server may have it. refusals: how often it was refused for overload, and `overload`
    says how. moves: how often it went to another replica. pin: the session it belongs to, if any.
    """

    __slots__ = (
        "deadline", "future", "moves", "overload", "pin", "refusals", "replica", "request", "request_id", "sent", "slot", "timeout_s",
        "waiter", "wake",
    )  # fmt: skip

    def __init__(self, request: Any, timeout_s: float, waiter: Waiter, future: Any, pin: Pin | None = None) -> None:
        self.pin = pin
        self.request = request
        self.timeout_s = timeout_s
        self.waiter = waiter
        self.future = future
        self.request_id = ""
        self.deadline = 0.0
        self.slot = 0
        self.replica: Replica | None = None
        self.sent = False
        self.refusals = 0
        self.moves = 0
        self.overload = ""
        self.wake: asyncio.TimerHandle | None = None


class Owner(Protocol):
    """Who gave the calls to the replica."""

    address: str

    def settled(self, call: Call, result: Any) -> None:
        """A call has its response, or an RpcError."""
        ...

    def opened(self, replica: Replica) -> None: ...

    def lost(self, replica: Replica, error: RpcUnavailable, again: list[Call], failed: list[Call]) -> None:
        """The connection ended or was never made. again: calls no server began; failed: calls whose fate is unknown."""
        ...


@dataclass(eq=False)
class Replica:
    """The connection to one target.

    state: "idle", "connecting", "open" or "closing". unary: the server has no stream. calls: what was given to it and is not settled, by
    id. pins: the sessions that it has. retry_at: when to try again after `failures` in a row.
    """

    target: Target
    method: BatchedMethod[Any, Any]
    security: ClientSecurity
    client_id: str
    connect_timeout_s: float
    owner: Owner
    counts: StreamCounts
    state: str = "idle"
    unary: bool = False
    retry_at: float = 0.0
    failures: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    pins: weakref.WeakSet[Pin] = field(default_factory=weakref.WeakSet)
    _outbox: list[Call] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: asyncio.Task[None] | None = None
    _unary_tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def connect(self) -> None:
        """Start connecting; `owner` hears of the end."""
        self.state = "connecting"
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """End the connection, its calls being failed as lost."""
        if self._runner is not None:
            self._runner.cancel()

    def send(self, call: Call) -> None:
        """Take a call. The replica must be open."""
        call.replica, call.sent = self, False
        self.calls[call.request_id] = call
        self._outbox.append(call)
        if not self._wake.is_set():
            self._wake.set()

    def withdraw(self, call: Call) -> None:
        """Forget a call; if the server has it, tell the server to cancel it."""
        if self.calls.pop(call.request_id, None) is None:
            return
        unary = self._unary_tasks.get(call.request_id)
        if unary is not None:
            unary.cancel()
        elif not call.sent:
            self._outbox.remove(call)
        elif self.state == "open" and not self.unary:
            self._outbox.append(call)  # no longer in `calls`: what is sent of it is the cancel
            self._wake.set()

    async def _run(self) -> None:
        error: RpcUnavailable = RpcUnavailable(self.owner.address, "the client was closed")
        connected = clean = closed = False
        try:
            async with open_channel(self.target, self.security, self.unary) as channel:
                await channel_ready(channel, self.target, self.security, self.connect_timeout_s)
                connected = True
                self.state, self.failures = "open", 0
                self.counts.connections += 1
                self._wake.clear()
                self.owner.opened(self)
                if self.unary:
                    await self._exchange_unary(channel)
                else:
                    clean, error = await self._exchange(channel)
        except RpcUnavailable as reason:
            error = reason
        except asyncio.CancelledError:
            closed = True
            raise
        finally:
            self.state, self._runner = "idle", None
            calls, self.calls, self._outbox = list(self.calls.values()), {}, []
            again = [call for call in calls if (clean or not call.sent) and not closed]
            failed = [call for call in calls if closed or (call.sent and not clean)]
            self.owner.lost(self, self._described(error, connected and not closed), again, failed)

    def _described(self, error: RpcUnavailable, connected: bool) -> RpcUnavailable:
        where = "" if self.target.address == self.owner.address else f"replica {self.target.address}: "
        broke = "the connection broke: " if connected and not isinstance(error, RpcRefused) else ""
        return type(error)(self.owner.address, f"{where}{broke}{error.message}")

    # ------------------------------------------------------------------------------------------------------------- the stream

    async def _exchange(self, channel: grpc.aio.Channel) -> tuple[bool, RpcUnavailable]:
        """Write and read until the stream ends. True when it ended in a way that means: what has no result was never begun."""
        open_stream: Any = channel.stream_stream(self.method.path, None, self.method.results.FromString)  # batches are bytes already
        metadata = (("burnish-request-id", self.client_id), *token_metadata(self.security.token()))
        call = open_stream(metadata=metadata)
        reader = asyncio.create_task(self._read(call, channel))
        writer = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({reader}, timeout=REASON_S)  # when writing failed first, reading knows why
            if reader.done():
                return reader.result()
            return False, RpcUnavailable(self.owner.address, f"writing failed: {writer.exception()}")
        finally:
            self.state = "closing"
            call.cancel()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _write(self, stream: Any) -> None:
        while True:
            await self._wake.wait()  # ends a tick after the first call came: whatever else came with it joins the batch
            self._wake.clear()
            while self._outbox:
                batch, self._outbox = self._outbox[:BATCH_ITEMS], self._outbox[BATCH_ITEMS:]
                for data in self._encode(batch):
                    await stream.write(data)

    def _encode(self, batch: list[Call]) -> list[bytes]:
        """The messages that carry a batch: one, or more of them when it is large. A call too large for any is refused here."""
        now = asyncio.get_running_loop().time()
        message = self.method.items()
        for call in batch:  # added in place: protobuf copies what a constructor is given
            if call.request_id in self.calls:
                message.items.add(request_id=call.request_id, timeout_s=max(call.deadline - now, 0.001), request=call.request)
            else:
                message.items.add(request_id=call.request_id, cancel={})
        data = message.SerializeToString()
        if len(data) > BATCH_BYTES and len(batch) > 1:
            half = len(batch) // 2
            return self._encode(batch[:half]) + self._encode(batch[half:])
        if len(data) + 1024 > MAX_MESSAGE_BYTES:
            message = f"the request has {len(data)} bytes; the limit is {MAX_MESSAGE_BYTES}"
            del self.calls[batch[0].request_id]
            self.owner.settled(batch[0], RpcRemoteError(self.owner.address, message, CODES["INVALID_ARGUMENT"]))
            return []
        for call in batch:
            call.sent = True
        self.counts.items_sent += len(batch)
        self.counts.batches_sent += 1
        return [data]

    async def _read(self, stream: Any, channel: grpc.aio.Channel) -> tuple[bool, RpcUnavailable]:
        try:
            async for message in stream:
                results = message.results
                self.counts.batches_received += 1
                self.counts.results_received += len(results)
                for result in results:
                    call = self.calls.pop(result.request_id, None)
                    if call is not None:  # else it was withdrawn meanwhile
                        self.owner.settled(call, self._outcome(result))
        except grpc.aio.AioRpcError as error:
            error = await self._uncovered(error, channel)
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self.unary = True
                return True, RpcUnavailable(self.owner.address, "the server has no stream")
            ended = await call_error(error, self.owner.address, self.target, self.security)
            if isinstance(ended, RpcRefused):
                return False, ended
            return False, RpcUnavailable(self.owner.address, f"{error.code().name}: {error.details()}")
        return True, RpcUnavailable(self.owner.address, "the server closed the stream")

    async def _uncovered(self, error: grpc.aio.AioRpcError, channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
        """Why the server ended the stream, where a write that met the end covered it up: then an empty stream says it again."""
        if error.code() is not grpc.StatusCode.INTERNAL or channel.get_state() is not grpc.ChannelConnectivity.READY:
            return error
        open_stream: Any = channel.stream_stream(self.method.path, None, self.method.results.FromString)
        again = open_stream(metadata=token_metadata(self.security.token()), timeout=REASON_S / 2)
        code = await again.code()
        if code not in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
            return error
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), await again.details(), None)

    def _outcome(self, result: Any) -> Any:
        match result.WhichOneof("outcome"):
            case "response":
                return result.response
            case "error":
                return error_from(self.owner.address, result.error.code, result.error.message)
            case _:
                return RpcRemoteError(self.owner.address, "the service sent a result without outcome", CODES["INTERNAL"])

    # ------------------------------------------------------------------------------------------------------------ unary calls

    async def _exchange_unary(self, channel: grpc.aio.Channel) -> None:
        """Make a unary call of every item until the client is closed: gRPC connects again by itself."""
        call_one: Any = channel.unary_unary(
            self.method.unary_path,
            request_serializer=self.method.request.SerializeToString,
            response_deserializer=self.method.response.FromString,
        )
        turn = asyncio.Semaphore(UNARY_AT_A_TIME)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                batch, self._outbox = self._outbox, []
                for call in batch:
                    self._unary_tasks[call.request_id] = asyncio.create_task(self._one(call_one, call, turn))
        finally:
            for task in self._unary_tasks.values():
                task.cancel()

    async def _one(self, call_one: Any, call: Call, turn: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with turn:
                call.sent = True
                self.counts.unary_calls += 1
                left = max(call.deadline - loop.time(), 0.001)
                result = await call_one(call.request, timeout=left, metadata=(("burnish-request-id", call.request_id),))
        except grpc.aio.AioRpcError as error:
            result = await call_error(error, self.owner.address, self.target, self.security)
        finally:
            del self._unary_tasks[call.request_id]
        if self.calls.pop(call.request_id, None) is not None:
            self.owner.settled(call, result)
