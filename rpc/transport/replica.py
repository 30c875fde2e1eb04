"""One replica of a service, as a client sees it: a connection that carries the calls given to it, batched or, without a stream, unary.

Everything here runs on the background loop. `_run` lives as long as one connection.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..address import Target
from ..errors import RpcRefused, RpcUnavailable
from .calls import Call, Ended, Link, Pin
from .channels import channel_ready, open_channel
from .stream import StreamExchange
from .unary import UnaryExchange


class Owner(Protocol):
    """Who gave the calls to the replica."""

    address: str

    def settled(self, call: Call, result: object) -> None:
        """A call has its response, or an RpcError."""
        ...

    def opened(self, replica: Replica) -> None: ...

    def lost(self, replica: Replica, error: RpcUnavailable, again: list[Call], failed: list[Call]) -> None:
        """The connection ended or was never made. again: calls no server began; failed: calls whose fate is unknown."""
        ...


@dataclass(eq=False)
class Replica:
    """The connection to one target.

    state: "idle", "connecting" or "open". unary: the server has no stream. calls: what was given to it and is not settled, by
    id. pins: the sessions that it has. retry_at: when to try again after `failures` in a row. missed: calls that timed out
    since its last result. ejected: takes no new calls until it answers again; ejections: how often in a row that was so.
    """

    link: Link
    connect_timeout_s: float
    owner: Owner
    state: str = "idle"
    unary: bool = False
    was_open: bool = False
    retry_at: float = 0.0
    failures: int = 0
    missed: int = 0
    ejected: bool = False
    ejections: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    pins: weakref.WeakSet[Pin] = field(default_factory=weakref.WeakSet)
    _exchange: StreamExchange | UnaryExchange | None = None
    _channel: grpc.aio.Channel | None = None
    _runner: asyncio.Task[None] | None = None

    @property
    def target(self) -> Target:
        """Where it is."""
        return self.link.target

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
        assert self._exchange is not None, "only an open replica takes calls"
        call.replica, call.sent = self, False
        self.calls[call.request_id] = call
        self._exchange.send(call)

    def withdraw(self, call: Call) -> None:
        """Forget a call; if the server has it, tell the server to cancel it."""
        if self.calls.pop(call.request_id, None) is not None and self._exchange is not None:
            self._exchange.withdraw(call)

    async def answers(self, timeout_s: float) -> bool:
        """Whether the server says anything at all, and not that it is unwell: a health check on this connection."""
        if self._channel is None:
            return False
        stub = health_pb2_grpc.HealthStub(self._channel)  # type: ignore[no-untyped-call,unused-ignore]
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=self.link.method.service), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:  # one that knows no health checks is up, or could not say so
            return error.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED}
        except grpc.aio.UsageError:  # the connection was closed meanwhile
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _run(self) -> None:
        link = self.link
        ended = Ended(RpcUnavailable(link.address, "the client was closed"))
        connected = closed = False
        # Sessions do not outlive their server: one that cannot be reached again at once has lost them.
        patient = not (self.was_open and self.pins)
        try:
            async with open_channel(link.target, link.security) as channel:
                await channel_ready(channel, link.target, link.security, self.connect_timeout_s, patient)
                connected = self.was_open = True
                kind = UnaryExchange if self.unary else StreamExchange
                self._exchange, self._channel = kind(link, self.calls, self.owner.settled), channel
                self.state, self.failures, self.missed, self.ejected = "open", 0, 0, False
                link.counts.connections += 1
                self.owner.opened(self)
                ended = await self._exchange.run(channel)
        except RpcUnavailable as reason:
            ended = Ended(reason)
        except asyncio.CancelledError:
            closed = True
            raise
        finally:
            self.state, self._runner, self._exchange, self._channel = "idle", None, None, None
            self.unary = self.unary or ended.unary
            calls = list(self.calls.values())
            self.calls.clear()
            begun = [call for call in calls if closed or (call.sent and not ended.clean)]
            again = [call for call in calls if not closed and (ended.clean or not call.sent)]
            self.owner.lost(self, self._described(ended.error, connected and not closed), again, begun)

    def _described(self, error: RpcUnavailable, connected: bool) -> RpcUnavailable:
        where = "" if self.link.target.address == self.link.address else f"replica {self.link.target.address}: "
        broke = "the connection broke: " if connected and not isinstance(error, RpcRefused) else ""
        return type(error)(self.link.address, f"{where}{broke}{error.message}")
