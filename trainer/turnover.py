"""Runners that come and go while others play: one more is started where a node has room for it, and what leaves is ended.

Nobody waits for either. A runner that comes is first up, then takes the weights that the others have, and proves that it did; with those it
joins. One that does not come up, or does not prove them, is left out, and the run goes on without it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from ..rollout.weights import SyncReceipt
from .nodes import going_nodes, has_room
from .restarts import Restarts
from .runners import has_process, last_line

log = logging.getLogger("burnish.trainer.turnover")

LOOK_S = 2.0
"""Between two looks at the nodes of the cluster."""
PLACE_S = 20.0
"""Until a runner has a process that there was room for: somebody else may have taken it."""
AGAIN_S = 30.0
"""From a runner that did not come up until the next is tried."""
ANSWER_S = 10.0
"""Until an answer is here that has been given."""


@dataclass(frozen=True)
class RunnerSource:
    """Where runners come from. start: makes one more, without waiting for it, and gives its number. forget: called with the number of one
    that has left. each: what one asks of the cluster, in Ray's words. start_s: for its start, engine included, once it has a process.
    sync_s: for the weights. close_s: for its end. tries: how many may fail to come up, until nobody tries again for their window."""

    start: Callable[[], tuple[int, Any]]
    forget: Callable[[int], None]
    each: Mapping[str, float]
    start_s: float
    sync_s: float
    close_s: float
    tries: Restarts


@dataclass(frozen=True)
class Held:
    """The weights that the others have, by the snapshot that they came in: a learner that was started anew may come to the same version
    with others. send: begins to give them to a runner, whose answer is a `SyncReceipt`."""

    snapshot: Any
    version: int
    send: Callable[[Any], Any]


@dataclass(frozen=True)
class Joined:
    """A runner that is up, and holds the weights that its receipt says; None where there are none to give."""

    index: int
    actor: Any
    receipt: SyncReceipt | None


@dataclass
class _Coming:
    """call: the one that it is to answer until then: whether it is up, and once it is, for the weights of the snapshot `taking`."""

    index: int
    actor: Any
    call: Any
    until: float
    placed: bool = False
    up: bool = False
    taking: Any = None


class Turnover:
    """The runners that are coming, and those that are going."""

    def __init__(self, source: RunnerSource) -> None:
        self._source = source
        self._coming: list[_Coming] = []
        self._going: dict[int, tuple[Any, Any, float]] = {}
        self._next_start = self._next_look = 0.0
        self._going_nodes: Mapping[str, str] = {}

    def look(self, missing: int, held: Held | None) -> Iterator[Joined]:
        """The runners that have come since the last look. missing: how many more are wanted than there are. held: what they must hold."""
        self._end_late()
        for one in self._coming[max(0, missing) :]:
            self._leave_out(one)
        for one in list(self._coming):
            if (joined := self._advanced(one, held)) is not None:
                self._coming.remove(one)
                missing -= 1
                yield joined
        if len(self._coming) < missing and all(one.placed for one in self._coming) and time.monotonic() >= self._next_start:
            self._next_start = time.monotonic() + LOOK_S
            if has_room(self._source.each):
                index, actor = self._source.start()
                self._coming.append(_Coming(index, actor, actor.ping.remote(), time.monotonic() + PLACE_S))

    def about_to_go(self, node: str) -> str:
        """That a node is about to be taken away, as `nodes.going_nodes` says it; "" where it is not."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            self._going_nodes = going_nodes()
        return self._going_nodes.get(node, "")

    def end(self, index: int, actor: Any, lost: bool) -> None:
        """End a runner that has left: it closes engine and environments, unless it was lost."""
        if lost:
            self._kill(index, actor)
        else:
            self._going[index] = actor, actor.stop.remote(), time.monotonic() + self._source.close_s

    def close(self) -> None:
        """Nobody comes any more, and who goes is gone."""
        for one in list(self._coming):
            self._leave_out(one)
        if self._going:
            calls = [call for _, call, _ in self._going.values()]
            ray.wait(calls, num_returns=len(calls), timeout=self._source.close_s)
        for index, (actor, _, _) in list(self._going.items()):
            self._kill(index, actor)
        self._going = {}

    def _advanced(self, one: _Coming, held: Held | None) -> Joined | None:
        """A runner that has come, None while it is on its way."""
        ready, _ = ray.wait([one.call], num_returns=1, timeout=0)
        if not ready:
            self._check_time(one)
            return None
        one.placed = True
        try:
            answer = ray.get(one.call, timeout=ANSWER_S)
        except ActorUnavailableError:  # it died while it started, and Ray starts it again
            one.call, one.up = one.actor.ping.remote(), False
            self._check_time(one)
            return None
        except RayError as error:
            if held is None or one.taking is None or one.taking is held.snapshot:
                self._refuse(one, last_line(error))
                return None
            answer = None  # those that it was sent were given up for newer ones
        if held is None:
            return Joined(one.index, one.actor, None)
        if one.up and answer is not None and one.taking is held.snapshot and answer.version == held.version:
            return Joined(one.index, one.actor, answer)
        one.up, one.taking, one.until = True, held.snapshot, time.monotonic() + self._source.sync_s
        one.call = held.send(one.actor)
        return None

    def _check_time(self, one: _Coming) -> None:
        if not one.placed and has_process(one.actor):
            one.placed, one.until = True, time.monotonic() + self._source.start_s
        if time.monotonic() <= one.until:
            return
        if one.placed:
            self._refuse(one, "it did not take the weights in time" if one.up else f"it is not up after {self._source.start_s:g} s")
        else:
            self._leave_out(one)
            self._next_start = time.monotonic() + AGAIN_S

    def _refuse(self, one: _Coming, why: str) -> None:
        """Go on without a runner that did not come up."""
        self._leave_out(one)
        too_many = self._source.tries.count()
        self._next_start = time.monotonic() + (self._source.tries.window_s if too_many else AGAIN_S)
        log.warning("rollout-%d does not join, and the run goes on without it: %s", one.index, why)

    def _leave_out(self, one: _Coming) -> None:
        self._coming.remove(one)
        self._kill(one.index, one.actor)

    def _end_late(self) -> None:
        """Kill the processes of who has ended, or was to have."""
        for index, (actor, call, until) in list(self._going.items()):
            ended, _ = ray.wait([call], num_returns=1, timeout=0)
            if not ended and time.monotonic() <= until:
                continue
            del self._going[index]
            if not ended:
                log.warning("rollout-%d has not ended within %g s: it is killed", index, self._source.close_s)
            self._kill(index, actor)

    def _kill(self, index: int, actor: Any) -> None:
        ray.kill(actor, no_restart=True)
        self._source.forget(index)
