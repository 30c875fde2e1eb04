"""An account of time, from one hand-out of weights to the next: who was busy, who was idle, and what more of would make steps shorter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ...rollout.busy import Busy
from ...rollout.weights import SyncReceipt

BUSY = 0.8
"""The share of the time from which on a part counts as what a run waits for."""
PARTS = ("engine", "environment", "rewards", "learner")


class Account:
    """Seconds busy and idle, of the learner as the loop sees it, and of the rest as each engine's process counts them and its receipts say.

    The seconds of several engines add up. total: of all steps that were accounted for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total: dict[str, float] = {}
        self._clock = clock
        self._read: dict[str, tuple[str, Busy]] = {}  # by engine: of which life, and how much
        self._since, self._learner, self._step = clock(), 0.0, -2

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The learner works."""
        began = self._clock()
        try:
            yield
        finally:
            self._learner += self._clock() - began

    def handed_out(self, receipts: Sequence[SyncReceipt], step: int) -> dict[str, float]:
        """`busy/PART_seconds` and `idle/PART_seconds` since the hand-out of the step before; nothing where that was not the last one.

        step: the number of this one.
        """
        now, rows = self._clock(), dict.fromkeys((f"{state}/{part}_seconds" for state in ("busy", "idle") for part in PARTS), 0.0)
        for receipt in receipts:
            life, last = self._read.get(receipt.engine, ("", Busy()))
            spent = receipt.busy.since(last) if life == receipt.life else receipt.busy  # of a new process, all that it counted
            self._read[receipt.engine] = receipt.life, receipt.busy
            for part, busy in (("engine", spent.engine), ("environment", spent.environment), ("rewards", spent.rewards)):
                rows[f"busy/{part}_seconds"] += busy
                rows[f"idle/{part}_seconds"] += spent.elapsed - busy
        rows["busy/learner_seconds"] = self._learner
        rows["idle/learner_seconds"] = max(0.0, now - self._since - self._learner)
        follows, self._step = step == self._step + 1, step
        self._since, self._learner = now, 0.0
        if not follows:
            return {}
        self.total = {name: seconds + self.total.get(name, 0.0) for name, seconds in rows.items()}
        return rows


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
    waiting = max(("environment", "rewards"), key=lambda part: busy[part])
    if busy["learner"] >= max(BUSY, busy["engine"]):
        advice = "steps wait for the learner; more engines would not make them shorter"
    elif busy["engine"] >= BUSY:
        advice = "steps wait for the engines; more of them (resources.env_runners) would make them shorter"
    elif rollouts == "sync" and busy["engine"] + busy["learner"] >= BUSY:
        advice = 'engines and learner take turns; rft.rollouts = "one_step_off" or "async" lets them work at the same time'
    elif busy[waiting] >= BUSY / 2:
        advice = f"engines wait for the {waiting}: scale its services, or raise rollout.concurrency"
    else:
        advice = "nobody is busy for long: what takes time lies between them"
    return f"busy: {', '.join(f'{part} {share:.0%}' for part, share in busy.items())}; {advice}"
