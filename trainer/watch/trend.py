"""Whether a measure has changed since a run began, beyond noise: its first steps against its last ones, looked at after every step.

The test is Welch's (1947) on the values of single steps, so that what differs between tasks and between samples counts as noise alike.
Where the values of a window happen to lie closer together than counting allows (three steps of success 0), the counting error takes the
place of their spread. A step is looked at again and again as a run grows, so the level is a low one: of runs in which nothing changes, 1
in 100 says otherwise at any of 20 steps, and 2 to 4 in 100 at any of 60 or 200. A rise along a straight line over 60 steps of 24 x 8
episodes is found by the end in nearly all runs when it is 30 points, in 8 of 10 when it is 20; over 20 steps of 8 x 8, in 2 of 10 when it
is 30: so few episodes cannot tell (300 simulated runs each; tests/unit/test_trainer_trend.py holds the rule to it with fewer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...rewards.terms import rounding

LEVEL = 0.002
"""Two-sided p-value below which a change counts as one: low, because every step looks again."""
FEWEST = 3
"""Steps in a window at least, so that nothing is said before nine."""
FIRST, LAST = 8, 16
"""Steps in the first and in the last window at most; each is a third of the steps so far. The start stays the start as a run grows."""


@dataclass(frozen=True, slots=True)
class Change:
    """The mean of the last steps against that of the first. Example: `Change(0.47, 0.71, 0.0001).rose`."""

    before: float
    after: float
    p_value: float

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def beyond_noise(self) -> bool:
        return self.p_value < LEVEL

    @property
    def rose(self) -> bool:
        return self.beyond_noise and self.difference > 0

    @property
    def fell(self) -> bool:
        return self.beyond_noise and self.difference < 0


def change(values: Sequence[float], errors: Sequence[float] | None = None) -> Change | None:
    """The change of a measure, a value per step; None while there are too few steps to say. errors: the standard error of each value that
    follows from how many episodes it was taken over.

    Example: `change([0.1, 0.2, 0.1, 0.5, 0.5, 0.9, 0.9, 1.0, 0.9]).before` is about 0.13.
    """
    from scipy import stats

    third = len(values) // 3
    if third < FEWEST:
        return None
    means, of_means, freedoms = [], [], []
    for part in (slice(0, min(FIRST, third)), slice(len(values) - min(LAST, third), None)):
        window = np.asarray(values[part], np.float64)
        least = 0.0 if errors is None else float(np.mean(np.square(errors[part])))
        means.append(float(window.mean()))
        of_means.append(max(float(window.var(ddof=1)), least) / len(window))
        freedoms.append(len(window) - 1)
    (before, after), spread = means, sum(of_means)
    if abs(after - before) <= rounding(means):
        return Change(before, after, 1.0)
    if spread == 0.0:
        return Change(before, after, 0.0)
    freedom = spread**2 / sum(one**2 / n for one, n in zip(of_means, freedoms, strict=True))
    return Change(before, after, 2 * float(stats.t.sf(abs(after - before) / math.sqrt(spread), freedom)))


Rows = Sequence[Mapping[str, float]]
"""Metrics of the steps of a phase, in order. Steps that a run recorded without the number of rewarded episodes say nothing here."""


def success_change(rows: Rows) -> Change | None:
    """How success has changed over the steps that had a rewarded episode."""
    seen = [(row["success"], row["rewarded"]) for row in rows if "success" in row and "rewarded" in row]
    shares = [(success * n + 1) / (n + 2) for success, n in seen]  # Laplace's: an error of 0 at 0 and 1 would be too sure
    errors = [math.sqrt(share * (1 - share) / n) for share, (_, n) in zip(shares, seen, strict=True)]
    return change([success for success, _ in seen], errors)


def reward_change(rows: Rows) -> Change | None:
    """How the mean reward that trains has changed."""
    seen = [row for row in rows if "reward_mean" in row and "rewarded" in row]
    errors = [row["reward_std"] / math.sqrt(row["rewarded"]) for row in seen]
    return change([row["reward_mean"] for row in seen], errors)


def metric_change(rows: Rows, name: str) -> Change | None:
    """How one metric has changed over the steps that have it."""
    return change([row[name] for row in rows if name in row])


def change_note(rows: Rows) -> str:
    """What the line of a step says of success since the beginning; empty while it is too early to say anything.

    Example: "+24 points since the start", or "no change beyond noise yet".
    """
    found = success_change(rows)
    if found is None:
        return ""
    return f"{100 * found.difference:+.0f} points since the start" if found.beyond_noise else "no change beyond noise yet"
