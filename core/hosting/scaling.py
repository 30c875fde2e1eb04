"""Keeping a service's replicas at the number its load asks for: the logic behind `burnish deploy-verifier`, without Ray."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

MAX_LOST = 5  # rounds in a row in which replicas died, or attempts when none is left
LEAVE_S = 3600.0  # longest that a replica on its way out keeps its sessions
FULL_S = 30.0  # pause before another replica is tried where one did not start, for want of room or else
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
    """Where replicas run. A replica is known by its address."""

    def start(self) -> str:
        """Start one, and return its address once it serves. Raises ValueError with its own message when it does not."""
        ...

    def loads(self) -> dict[str, int | None]:
        """Items in flight and sessions open, of each; None for one that is gone."""
        ...

    def stop(self, address: str) -> None:
        """Let one finish what it has, and end it. Harmless when it is gone."""
        ...

    def publish(self, addresses: list[str]) -> None:
        """Say where clients find them from now on."""
        ...

    def asked_to_stop(self) -> bool: ...


class ServiceReplicas:
    """The replicas of one service. Call `step` about once a second, and `stop` at the end."""

    def __init__(self, pool: ReplicaPool, scale: Scale, say: Callable[[str], None], leave_s: float = 3.0) -> None:
        self._pool = pool
        self._scale = scale
        self._scaler = Scaler(scale)
        self._say = say
        self._leave_s = leave_s  # how long clients take to see that a replica is no longer published
        self._leaving: dict[str, float] = {}
        self._lost = 0
        self._full_until = -math.inf
        self.addresses: list[str] = []

    def start(self) -> None:
        """Bring up the lowest number of replicas. Raises ValueError when one does not start."""
        while len(self.addresses) < self._scale.low:
            self._add()

    def step(self, now: float | None = None) -> None:
        """Replace what is gone, and follow the load. Raises RuntimeError when replicas keep dying, ValueError when none is left and none
        starts."""
        now = time.monotonic() if now is None else now
        loads = self._pool.loads()
        gone = [address for address in self.addresses if loads.get(address) is None]
        if gone:
            self._lost += 1
            self._full_until = now  # there is room where it was
        elif self.addresses:
            self._lost = 0
        if self._lost > MAX_LOST:
            raise RuntimeError(f"replicas died {self._lost} times in a row; their logs are in Ray's dashboard")
        for address in gone:
            self._say(f"replica {address} is gone; starting another")
            self.addresses.remove(address)
            self._pool.stop(address)
        if gone:
            self._pool.publish(self.addresses)
        wanted = self._scaler.wanted(sum(loads.get(address) or 0 for address in self.addresses), now)
        self._grow(wanted, now)
        if len(self.addresses) > wanted:
            least = min(self.addresses, key=lambda address: loads.get(address) or 0)
            self.addresses.remove(least)
            self._pool.publish(self.addresses)
            self._leaving[least] = now + self._leave_s
            self._say_how_many()
        for address, at in list(self._leaving.items()):
            if at <= now and (not loads.get(address) or now >= at + LEAVE_S):  # the sessions on it have ended
                del self._leaving[address]
                self._pool.stop(address)

    def _grow(self, wanted: int, now: float) -> None:
        while len(self.addresses) < wanted and now >= self._full_until:
            if self._leaving:  # not gone yet
                self.addresses.append(self._leaving.popitem()[0])
                self._pool.publish(self.addresses)
                self._say_how_many()
                continue
            try:
                self._add()
            except ValueError as error:
                self._lost += not self.addresses
                if self._lost > MAX_LOST:
                    raise
                self._full_until = now + (SHORT_S if len(self.addresses) < self._scale.low else FULL_S)
                self._say(f"stays at {len(self.addresses)} of {wanted} replicas: {error}")

    def stop(self) -> None:
        """End every replica, each finishing what it has."""
        self._pool.publish([])
        for address in [*self.addresses, *self._leaving]:
            self._pool.stop(address)
        self.addresses, self._leaving = [], {}

    def _add(self) -> None:
        self.addresses.append(self._pool.start())
        self._pool.publish(self.addresses)
        self._say_how_many()

    def _say_how_many(self) -> None:
        self._say(f"{len(self.addresses)} {'replica' if len(self.addresses) == 1 else 'replicas'}")
