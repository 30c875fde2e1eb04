"""How long the parts of a rollout worker, and the learner beside them, had something to do: what says which of them to give more of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Part = Literal["engine", "environment", "rewards"]
PARTS = ("engine", "environment", "rewards", "learner")
"""What seconds are accounted for of, in the order it is told in."""
BUSY = 0.8
"""The share of the time from which on a part counts as what a run waits for."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds in which at least one call of a part was under way, tools being the environment's, and seconds that have passed.

    Example: `Busy(engine=9.5, environment=2.0, rewards=0.1, elapsed=12.0)`.
    """

    engine: float = 0.0
    environment: float = 0.0
    rewards: float = 0.0
    elapsed: float = 0.0

    def since(self, earlier: Busy) -> Busy:
        """What came to an earlier reading of the same meter."""
        return Busy(
            self.engine - earlier.engine,
            self.environment - earlier.environment,
            self.rewards - earlier.rewards,
            self.elapsed - earlier.elapsed,
        )


class Meter:
    """Counts the calls under way, from one thread, and adds up the time in which there is one. ended: calls that have, of any part.

    Example: `with meter.running("engine"): await engine.generate(request)`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._made = clock, clock()
        self._calls: dict[Part, int] = {"engine": 0, "environment": 0, "rewards": 0}
        self.ended = 0
        # Seconds until the last call ended, and since when one is under way: in one, since another thread may read in the middle of an end.
        self._spent: dict[Part, tuple[float, float | None]] = dict.fromkeys(self._calls, (0.0, None))

    @contextmanager
    def running(self, part: Part) -> Iterator[None]:
        """A call of a part is under way."""
        if self._calls[part] == 0:
            self._spent[part] = self._spent[part][0], self._clock()
        self._calls[part] += 1
        try:
            yield
        finally:
            self._calls[part] -= 1
            self.ended += 1
            if self._calls[part] == 0:
                seconds, began = self._spent[part]
                assert began is not None
                self._spent[part] = seconds + self._clock() - began, None

    @property
    def under_way(self) -> dict[Part, int]:
        """How many calls of each part are under way now, where there are any; from any thread."""
        return {part: count for part, count in self._calls.items() if count}

    def read(self) -> Busy:
        """From the beginning until now, from any thread."""
        now, spent = self._clock(), dict(self._spent)
        busy = {part: seconds + (max(0.0, now - began) if began is not None else 0.0) for part, (seconds, began) in spent.items()}
        return Busy(busy["engine"], busy["environment"], busy["rewards"], now - self._made)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """By part, the share of the time in which it was busy; nothing where nothing was accounted for."""
    found = {}
    for part in PARTS:
        busy, idle = seconds.get(f"busy/{part}_seconds", 0.0), seconds.get(f"idle/{part}_seconds", 0.0)
        if busy + idle > 0:
            found[part] = busy / (busy + idle)
    return found


def what_to_scale(seconds: Mapping[str, float], rollouts: str) -> str | None:
    """One line: how busy each part was, and what more of would make steps shorter. None where nothing was accounted for."""
    busy = shares(seconds)
    if busy.keys() != set(PARTS):
        return None
    return f"busy: {', '.join(f'{part} {share:.0%}' for part, share in busy.items())}; {advice(busy, rollouts)}"


def advice(busy: Mapping[str, float], rollouts: str) -> str:
    """What more of would make steps shorter. busy: the share of each of `PARTS`, as `shares` gives them. rollouts: as in `rft.rollouts`."""
    waiting = max(("environment", "rewards"), key=lambda part: busy[part])
    if busy["learner"] >= max(BUSY, busy["engine"]):
        return "steps wait for the learner; more engines would not make them shorter"
    if busy["engine"] >= BUSY:
        return "steps wait for the engines; more of them (resources.env_runners) would make them shorter"
    if rollouts == "sync" and busy["engine"] + busy["learner"] >= BUSY:
        return 'engines and learner take turns; rft.rollouts = "one_step_off" or "async" lets them work at the same time'
    if busy[waiting] >= BUSY / 2:
        return f"engines wait for the {waiting}: scale its services, or raise rollout.concurrency"
    return "nobody is busy for long: what takes time lies between them"
