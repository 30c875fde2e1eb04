"""A call on its way, and what the parts of the transport know of each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from ..address import Target
from ..errors import CODES, RpcRemoteError, RpcUnavailable, error_from
from ..methods import BatchedMethod
from ..security import ClientSecurity


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
        self.replica: Any = None
        self.sent = False
        self.refusals = 0
        self.moves = 0
        self.overload = ""
        self.wake: asyncio.TimerHandle | None = None


class Line(Protocol):
    """Takes the calls to one method of one address: all replicas of a service, or a mock in their place. Lives on the background loop."""

    counts: StreamCounts

    def submit(self, call: Call) -> None:
        """Start a call; its waiter gets the response or an RpcError, once."""
        ...

    def withdraw(self, call: Call) -> None:
        """Forget a call that nobody waits for any more."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """What a connection is about. address: the service, as failures name it. client_id: of this process, for the server's log."""

    address: str
    target: Target
    method: BatchedMethod[Any, Any]
    security: ClientSecurity
    client_id: str
    counts: StreamCounts


@dataclass(frozen=True, slots=True)
class Ended:
    """How an exchange ended. clean: what has no result was never begun. unary: the server has no stream."""

    error: RpcUnavailable
    clean: bool = False
    unary: bool = False


def outcome_of(address: str, result: Any) -> Any:
    """The response in a result of a stream, or the RpcError that it ends its call with."""
    match result.WhichOneof("outcome"):
        case "response":
            return result.response
        case "error":
            return error_from(address, result.error.code, result.error.message)
        case _:
            return RpcRemoteError(address, "the service sent a result without outcome", CODES["INTERNAL"])
