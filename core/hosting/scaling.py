"""Keeping a service's replicas at the number its load asks for: the logic behind `burnish deploy-verifier`, without Ray."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_LOST = 5  # rounds in a row in which replicas died, or attempts when none is left
LEAVE_S = 3600.0  # longest that a replica on its way out keeps its sessions
FULL_S = 30.0  # pause after a replica did not start, for want of room or else, before another is tried
SHORT_S = 5.0  # the same while there are fewer than the lowest number


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas. low, high: bounds. in_flight: items in flight that one replica is meant to have; more of them ask for another.
    calm_s: how long fewer replicas must have been enough before one goes.

    Example: `Scale.parse("1..8").high == 8`.
    """

    low: int
    high: int
    in_flight: int = 32
    calm_s: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"replicas {self.low}..{self.high}: the first number must be at least 1, and not above the second")
        if self.in_flight < 1:
            raise ValueError(f"a replica must be meant to have at least 1 item in flight, not {self.in_flight}")

    @staticmethod
    def parse(text: str, in_flight: int = 32, calm_s: float = 30.0) -> Scale:
        """Read "3" or "1..8". Raises ValueError on anything else."""
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
        if match is None:
            raise ValueError(f"replicas {text!r} must be a number, or a range such as 1..8")
        return Scale(int(match[1]), int(match[2] or match[1]), in_flight, calm_s)


class Scaler:
    """How many replicas a load asks for: more at once, fewer only after `calm_s` seconds in which fewer were enough."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._enough: list[tuple[float, int]] = []

    def wanted(self, in_flight: int, now: float) -> int:
        """in_flight: items of all replicas together. now: seconds on any clock that does not go back."""
        scale = self._scale
        needed = min(max(math.ceil(in_flight / scale.in_flight), scale.low), scale.high)
        self._enough = [(at, count) for at, count in self._enough if at > now - scale.calm_s] + [(now, needed)]
        return max(count for _, count in self._enough)


class ReplicaPool(Protocol):
    """Where replicas run. A replica is known by its address. No call waits for one to start."""

    def start(self) -> str | None:
        """Have one start, or ask after the one that is starting: its address once it serves, None until then. Raises ValueError with its
        own message when it does not come up; the next call is about another."""
        ...

    def abandon(self) -> None:
        """Give up the one that is starting, if any."""
        ...

    def loads(self) -> dict[str, int | None]:
        """Items in flight and sessions open, of each; None for one that is gone."""
        ...

    def stop(self, addresses: Sequence[str]) -> None:
        """Let these finish what they have, all at a time, and end them. Harmless for those that are gone."""
        ...

    def publish(self, addresses: list[str]) -> None:
        """Say where clients find them from now on."""
        ...

    def asked_to_stop(self) -> bool: ...


class ServiceReplicas:
    """The replicas of one service, which start one at a time. Call `start` until it is true, `step` about once a second, and `stop` at the
    end.

    leave_s: how long clients take to see that a replica is no longer published. clock: seconds, never going back.
    """

    def __init__(
        self,
        pool: ReplicaPool,
        scale: Scale,
        say: Callable[[str], None],
        leave_s: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._clock = pool, clock
        self._scale = scale
        self._scaler = Scaler(scale)
        self._say = say
        self._leave_s = leave_s
        self._leaving: dict[str, float] = {}
        self._lost = 0
        self._is_starting = False
        self._full_until = -math.inf
        self.addresses: list[str] = []

    def start(self) -> bool:
        """Go on to bring up the lowest number of replicas; whether they are up. Raises ValueError when one does not start."""
        while len(self.addresses) < self._scale.low and self._add():
            pass
        return len(self.addresses) >= self._scale.low

    def step(self) -> None:
        """Replace what is gone, and follow the load. Raises RuntimeError when replicas keep dying, ValueError when none is left and none
        starts."""
        loads = self._pool.loads()
        gone = [address for address in self.addresses if loads.get(address) is None]
        if gone:
            self._lost += 1
            self._full_until = -math.inf  # there is room where it was
        elif self.addresses and not self._is_starting:  # which may be in place of one that died
            self._lost = 0
        if self._lost > MAX_LOST:
            raise RuntimeError(f"replicas died {self._lost} times in a row; their logs are in Ray's dashboard")
        for address in gone:
            self._say(f"replica {address} is gone; starting another")
            self.addresses.remove(address)
        if gone:
            self._pool.publish(self.addresses)
            self._pool.stop(gone)
        wanted = self._scaler.wanted(sum(loads.get(address) or 0 for address in self.addresses), self._clock())
        self._grow(wanted, loads)
        if len(self.addresses) > wanted:
            least = min(self.addresses, key=lambda address: loads.get(address) or 0)
            self.addresses.remove(least)
            self._pool.publish(self.addresses)
            self._leaving[least] = self._clock() + self._leave_s
            self._say_how_many()
        self._end_those_that_left(loads)

    def _end_those_that_left(self, loads: Mapping[str, int | None]) -> None:
        now = self._clock()
        idle = [  # the sessions on them have ended
            address for address, at in self._leaving.items() if at <= now and (not loads.get(address) or now >= at + LEAVE_S)
        ]
        for address in idle:
            del self._leaving[address]
        if idle:
            self._pool.stop(idle)

    def _grow(self, wanted: int, loads: Mapping[str, int | None]) -> None:
        for address in reversed(list(self._leaving)):
            if len(self.addresses) < wanted and loads.get(address) is not None:  # not gone yet
                del self._leaving[address]
                self._take(address)
        try:
            while self._is_starting or (len(self.addresses) < wanted and self._clock() >= self._full_until):
                if not self._add():
                    return
        except ValueError as error:
            self._lost += not self.addresses
            if self._lost > MAX_LOST:
                raise
            self._full_until = self._clock() + (SHORT_S if len(self.addresses) < self._scale.low else FULL_S)
            self._say(f"stays at {len(self.addresses)} of {max(wanted, len(self.addresses) + 1)} replicas: {error}")

    def stop(self) -> None:
        """End every replica, each finishing what it has."""
        self._pool.abandon()
        self._pool.publish([])
        self._pool.stop([*self.addresses, *self._leaving])
        self.addresses, self._leaving = [], {}

    def _add(self) -> bool:
        """Have another replica start, or ask after the one that is starting; whether it has come up. Raises ValueError when it does not."""
        self._is_starting = False
        address = self._pool.start()
        self._is_starting = address is None
        if address is not None:
            self._take(address)
        return address is not None

    def _take(self, address: str) -> None:
        self.addresses.append(address)
        self._pool.publish(self.addresses)
        self._say_how_many()

    def _say_how_many(self) -> None:
        self._say(f"{len(self.addresses)} {'replica' if len(self.addresses) == 1 else 'replicas'}")
