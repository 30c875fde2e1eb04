"""An account of time, from one hand-out of weights to the next: who was busy, and who was idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ...rollout.busy import PARTS, Busy
from ...rollout.weights import SyncReceipt

_NONE = -2
"""The number of a step that none follows."""


class Account:
    """Seconds busy and idle, of the learner as the loop sees it, and of the rest as each engine's process counts them and its receipts say.

    The seconds of several engines add up. total: of all steps that were accounted for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total: dict[str, float] = {}
        self._clock = clock
        self._read: dict[str, tuple[str, Busy]] = {}  # by engine: of which life, and how much
        self._since, self._learner, self._step = clock(), 0.0, _NONE

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The learner works."""
        began = self._clock()
        try:
            yield
        finally:
            self._learner += self._clock() - began

    def pause(self) -> None:
        """Something else is done with the engines before the next hand-out, which is therefore not accounted for."""
        self._step = _NONE

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
