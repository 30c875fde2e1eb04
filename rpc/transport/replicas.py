"""All replicas of one service, as a client sees them: calls go to the open one with the least in flight, sessions to that with the fewest.

A replica that is down is left out and tried again with growing pauses. One that is connected and lets calls time out is left out too, until
it answers a health check: a timed-out call is no longer in flight, so that by load alone the one that answers nothing would get the most.
Calls it had end with `RpcUnavailable`; calls that no server began go to another. A call that is refused for overload waits and is sent
again, within its deadline. A replica that an address no longer names keeps the sessions it has. Everything here runs on the background
loop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import uuid
from typing import Any

from ..address import Endpoint, Target, is_dynamic
from ..background import Background
from ..errors import CODES, RpcError, RpcOverloaded, RpcRemoteError, RpcTimeout, RpcUnavailable
from ..methods import BatchedMethod
from ..pauses import growing_pause
from .calls import Call, Link, StreamCounts
from .deadlines import Deadlines
from .replica import Replica
from .resolve import targets_of

SETTLE_S = 0.25  # after the first replica is open, so long may the others take before all calls go to the first
RETRY_S, MAX_RETRY_S = 0.5, 15.0  # pauses before a replica that was down is tried again
OVERLOAD_S, MAX_OVERLOAD_S = 0.05, 2.0  # pauses of a call that was refused for overload
MAX_REFUSALS = 40
MAX_MOVES = 3
REFRESH_S = 2.0  # how often replicas that come and go are looked up while in use
EJECT_AFTER = 2  # calls that timed out without an answer between them
EJECT_S, MAX_EJECT_S = 1.0, 30.0  # pauses before a replica that let calls time out is asked whether it is there
PROBE_S = 2.0


class Replicas:
    """The client side of one method of one address, shared by every caller in the process.

    `_replicas` are those that the address names now, `_leaving` those that it named before and that have sessions or calls left; `_open`
    are the connected ones of both, `_takers` those of `_open` that new calls and sessions go to.
    """

    def __init__(self, endpoint: Endpoint, method: BatchedMethod[Any, Any], connect_timeout_s: float, home: Background) -> None:
        self.address = endpoint.shown
        self.counts = StreamCounts()
        self._endpoint = endpoint
        self._method = method
        self._connect_timeout_s = connect_timeout_s
        self._loop = home.loop
        self._ids = itertools.count()
        self._client_id = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._replicas: list[Replica] = []
        self._leaving: list[Replica] = []
        self._open: list[Replica] = []
        self._takers: list[Replica] = []
        self._waiting: dict[str, Call] = {}
        self._deadlines: Deadlines[Call] = Deadlines(home.loop, self._expire)
        self._settled_at = 0.0
        self._resolver: asyncio.Task[None] | None = None
        self._resolved_at = -float("inf")
        self._dynamic = is_dynamic(endpoint)
        self._probes: set[asyncio.Task[None]] = set()

    def submit(self, call: Call) -> None:
        """Start a call; its waiter gets the response or an RpcError, once."""
        call.request_id = f"{self._client_id}-{next(self._ids)}"
        call.deadline = self._loop.time() + call.timeout_s
        call.slot = self._deadlines.add(call, call.deadline)
        self._place(call)

    def withdraw(self, call: Call) -> None:
        """Forget a call, and have the server cancel it."""
        self._forget(call)
        if call.replica is not None:
            call.replica.withdraw(call)
        self._waiting.pop(call.request_id, None)

    def settled(self, call: Call, result: Any) -> None:
        """A replica has the outcome of a call."""
        replica, call.replica = call.replica, None
        if replica.unary and isinstance(result, RpcTimeout):
            self._missed(replica)  # of a unary call gRPC keeps the deadline
        else:
            replica.missed = replica.ejections = 0
        if isinstance(result, RpcRemoteError) and self._try_later(call, result):
            return
        self._finish(call, result)

    def opened(self, replica: Replica) -> None:
        """A replica is connected."""
        if not self._open:
            self._settled_at = self._loop.time() + SETTLE_S
            self._loop.call_at(self._settled_at, self._place_waiting)
        self._open.append(replica)
        self._choose_takers()
        self._place_waiting()

    def lost(self, replica: Replica, error: RpcUnavailable, again: list[Call], failed: list[Call]) -> None:
        """The connection of a replica ended or was never made."""
        if replica in self._open:
            self._open.remove(replica)
        if replica in self._leaving and not replica.pins:
            self._leaving.remove(replica)
        self._choose_takers()
        pause = growing_pause(replica.failures, RETRY_S, MAX_RETRY_S) * random.uniform(0.75, 1.25)
        if not replica.unary or replica.failures:  # one that only turned out to have no stream is tried again at once
            replica.retry_at = self._loop.time() + pause
        replica.failures += 1
        self._resolved_at = -float("inf") if self._dynamic else self._resolved_at
        for call in failed:
            self._finish(call, error)
        for call in again:
            call.moves += 1
            if call.moves > MAX_MOVES:
                self._finish(call, error)
            else:
                call.replica = None
                self._place(call)
        for call in [one for one in self._waiting.values() if one.pin is not None and one.pin.target == replica.target]:
            if call not in again:
                del self._waiting[call.request_id]
                self._finish(call, error)
        self._place_waiting()
        if not self._open and not any(one.state == "connecting" for one in [*self._replicas, *self._leaving]):
            self._fail_waiting(error)

    # ---------------------------------------------------------------------------------------------------- where calls go

    def _place(self, call: Call) -> None:
        """Give a call to the open replica with the least in flight, or to that of its session; or let it wait for one."""
        self._connect()
        replica = self._route(call) if self._open and self._is_settled() else None
        if replica is not None:
            replica.send(call)
            return
        self._waiting[call.request_id] = call
        if call.pin is not None and call.pin.target and self._replicas:
            home = self._home(call.pin.target)
            if home is None:
                del self._waiting[call.request_id]
                self._finish(call, RpcUnavailable(self.address, f"the replica {call.pin.target.address}, which has this session, is gone"))
            elif home.state == "idle":
                home.connect()

    def _home(self, target: Target) -> Replica | None:
        return next((one for one in [*self._replicas, *self._leaving] if one.target == target), None)

    def _route(self, call: Call) -> Replica | None:
        """The open replica that a call goes to; None when there is none, or that of its session is not open."""
        takers, pin = self._takers, call.pin
        if pin is None:
            if len(takers) < 2:
                return takers[0] if takers else None
            return min(takers, key=lambda one: (len(one.calls), random.random()))
        if pin.target:
            return next((one for one in self._open if one.target == pin.target), None)
        if not takers:
            return None
        replica = min(takers, key=lambda one: (len(one.pins), random.random()))  # between its steps a session has nothing in flight
        replica.pins.add(pin)
        pin.target = replica.link.target
        return replica

    def _choose_takers(self) -> None:
        """New calls go to what is open, named by the address, and answers; where none answers, to all of them."""
        named = [one for one in self._open if one not in self._leaving]
        self._takers = [one for one in named if not one.ejected] or named

    def _place_waiting(self) -> None:
        if not self._waiting or not self._open or not self._is_settled():
            return
        for call in list(self._waiting.values()):
            replica = self._route(call)
            if replica is not None:
                del self._waiting[call.request_id]
                replica.send(call)

    def _is_settled(self) -> bool:
        """Whether calls may go out: the others are open too, or have had their time."""
        if len(self._open) == len(self._replicas) or self._loop.time() >= self._settled_at:
            return True
        return not any(one.state == "connecting" for one in self._replicas)

    # --------------------------------------------------------------------------------------------- replicas that do not answer

    def _missed(self, replica: Replica) -> None:
        """A call that the replica had timed out. When several did so in a row, it takes no new ones until it answers a health check."""
        replica.missed += 1
        if replica.missed < EJECT_AFTER or replica.ejected or replica.state != "open" or len(self._takers) < 2:
            return
        replica.ejected = True
        self._choose_takers()
        probe = self._loop.create_task(self._readmit(replica))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _readmit(self, replica: Replica) -> None:
        while replica.ejected and replica.state == "open":
            pause = growing_pause(replica.ejections, EJECT_S, MAX_EJECT_S)
            replica.ejections += 1
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
            if await replica.answers(PROBE_S):
                replica.ejected, replica.missed = False, EJECT_AFTER - 1  # on probation
        self._choose_takers()

    # ------------------------------------------------------------------------------------------------------ which there are

    def _connect(self) -> None:
        """See to it that whatever may be connected is, or is being connected."""
        if self._dynamic or not self._replicas:
            self._resolve()
        if len(self._open) >= len(self._replicas) and not self._leaving:
            return
        now = self._loop.time()
        idle = [one for one in self._replicas if one.state == "idle"]
        due = [one for one in idle if one.retry_at <= now]
        if not due and len(idle) == len(self._replicas) and idle:
            due = [min(idle, key=lambda one: one.retry_at)]  # none is up: a call is worth an attempt
        for replica in due:
            replica.connect()

    def _resolve(self) -> None:
        if self._resolver is None and self._loop.time() >= self._resolved_at + REFRESH_S:
            self._resolved_at = self._loop.time()
            self._resolver = self._loop.create_task(self._look_up())

    async def _look_up(self) -> None:
        """Learn which replicas there are. What cannot be learned changes nothing: those known last go on."""
        try:
            targets = await targets_of(self._endpoint)
        except RpcUnavailable as error:
            if not self._replicas:
                self._fail_waiting(error)
                self._resolved_at = -float("inf")
            return
        finally:
            self._resolver = None
        self._take_over(targets)
        self._connect()
        self._place_waiting()

    def _take_over(self, targets: tuple[Target, ...]) -> None:
        """New replicas are connected to; those that went away take no new calls, and leave once their sessions and calls have ended."""
        known = {one.link.target: one for one in [*self._replicas, *self._leaving]}
        gone = [one for one in known.values() if one.link.target not in targets]
        self._leaving = [one for one in gone if one.calls or one.pins]
        for replica in gone:
            if replica not in self._leaving:
                replica.close()
        self._replicas = [known.get(target) or self._new(target) for target in targets]
        self._choose_takers()

    def _new(self, target: Target) -> Replica:
        link = Link(self.address, target, self._method, self._endpoint.security, self._client_id, self.counts)
        return Replica(link, self._connect_timeout_s, self)

    # ---------------------------------------------------------------------------------------------------- how calls end

    def _try_later(self, call: Call, error: RpcRemoteError) -> bool:
        """Whether the call was refused for overload, and will be sent again."""
        too_large = "larger than max" in error.message  # gRPC gives a message above its limit the same code
        if error.code != CODES["RESOURCE_EXHAUSTED"] or too_large or call.refusals >= MAX_REFUSALS:
            return False
        pause = growing_pause(call.refusals, OVERLOAD_S, MAX_OVERLOAD_S) * random.uniform(0.5, 1.5)
        call.refusals += 1
        call.overload = error.message
        call.wake = self._loop.call_later(pause, self._place, call)
        return True

    def _expire(self, call: Call) -> None:
        """The deadline passed."""
        seconds = f"{call.timeout_s:g} s"
        if call.overload:
            refused = f"the service was overloaded and refused the call {call.refusals} times: {call.overload}"
            error: RpcError = RpcOverloaded(self.address, f"no answer within {seconds}; {refused}")
        elif call.replica is not None:
            several = f" from replica {call.replica.link.target.address}" if len(self._replicas) > 1 else ""
            error = RpcTimeout(self.address, f"no answer{several} within {seconds}")
        else:
            lives = call.pin.target if call.pin is not None and len(self._replicas) > 1 else None
            where = f"replica {lives.address}, which has this session: " if lives else ""
            error = RpcUnavailable(self.address, f"{where}could not connect within {seconds}; is the service running?")
        if call.replica is not None and call.sent:
            self._missed(call.replica)
        self.withdraw(call)
        call.waiter.deliver(call.future, error)

    def _fail_waiting(self, error: RpcUnavailable) -> None:
        stranded, self._waiting = list(self._waiting.values()), {}
        for call in stranded:
            self._finish(call, error)

    def _finish(self, call: Call, result: Any) -> None:
        self._forget(call)
        call.waiter.deliver(call.future, result)

    def _forget(self, call: Call) -> None:
        self._deadlines.discard(call, call.slot)
        if call.wake is not None:
            call.wake.cancel()
