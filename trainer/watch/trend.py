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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...rewards.terms import rounding

LEVEL = 0.002
"""Two-sided p-value below which a change counts as one: low, because every step looks again."""
FEWEST = 3
"""Steps in a window at least, so that nothing is said before nine."""
AROUND = 3
"""Steps before and after the first measurement on held-out tasks whose episodes it is compared with; as many in all up to the last."""
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
    third = len(values) // 3
    if third < FEWEST:
        return None
    before, after = slice(0, min(FIRST, third)), slice(len(values) - min(LAST, third), None)
    return _compared(*(_mean_of(values[part], None if errors is None else errors[part]) for part in (before, after)))


@dataclass(frozen=True, slots=True)
class _Mean:
    """A mean, the variance of it, and the degrees of freedom that this is known with."""

    value: float
    variance: float
    freedom: float


def _mean_of(values: Sequence[float], errors: Sequence[float] | None) -> _Mean:
    """The mean of a window. errors: as `change` takes them."""
    window = np.asarray(values, np.float64)
    least = 0.0 if errors is None else float(np.mean(np.square(errors)))
    return _Mean(float(window.mean()), max(float(window.var(ddof=1)), least) / len(window), len(window) - 1.0)


def _compared(before: _Mean, after: _Mean) -> Change:
    return Change(before.value, after.value, _p_value(after.value - before.value, (before, after)))


def _p_value(difference: float, means: Sequence[_Mean]) -> float:
    """Two-sided, that a sum and difference of these means is so far from 0, by Welch's test."""
    from scipy import stats

    if abs(difference) <= rounding([mean.value for mean in means]):
        return 1.0
    spread = sum(mean.variance for mean in means)
    if spread == 0.0:
        return 0.0
    freedom = spread**2 / sum(mean.variance**2 / mean.freedom for mean in means)
    return 2 * float(stats.t.sf(abs(difference) / math.sqrt(spread), freedom))


Rows = Sequence[Mapping[str, float]]
"""Metrics of the steps of a phase, in order. Steps that a run recorded without the number of rewarded episodes say nothing here."""


def success_change(rows: Rows) -> Change | None:
    """How success has changed over the steps that had a rewarded episode."""
    seen = [(row["success"], row["rewarded"]) for row in rows if "success" in row and "rewarded" in row]
    return change([success for success, _ in seen], [_share_error(success, n) for success, n in seen])


def reward_change(rows: Rows) -> Change | None:
    """How the mean reward that trains has changed."""
    seen = [row for row in rows if "reward_mean" in row and "rewarded" in row]
    errors = [row["reward_std"] / math.sqrt(row["rewarded"]) for row in seen]
    return change([row["reward_mean"] for row in seen], errors)


def metric_change(rows: Rows, name: str) -> Change | None:
    """How one metric has changed over the steps that have it."""
    return change([row[name] for row in rows if name in row])


@dataclass(frozen=True, slots=True)
class HeldOutChange:
    """From the first measurement on held-out tasks to the last one. since: the step of the first, from 1. tasks: of the last. training:
    the mean reward of the steps around both; reward, success: on held-out tasks. p_apart: that reward in training and on held-out tasks
    changed alike."""

    since: int
    tasks: int
    training: Change
    reward: Change
    success: Change
    p_apart: float

    @property
    def apart(self) -> bool:
        """Whether the reward rose in training, and on held-out tasks by less than half of that, both beyond noise."""
        return self.training.rose and self.p_apart < LEVEL and self.reward.difference < self.training.difference / 2


def held_out_change(rows: Rows) -> HeldOutChange | None:
    """How what training earns has changed beside what held-out tasks do, as the last step measured them; None where it did not, or where
    the windows around it and the first measurement overlap.

    Two measurements are taken to be independent. They are of the same tasks, so their difference is less uncertain than that.
    """
    measured = [i for i, row in enumerate(rows) if row.get("held_out/tasks", 0.0) > 1]
    last = len(rows) - 1
    if not measured or measured[-1] != last or measured[0] + AROUND >= last - 2 * AROUND:
        return None
    windows = rows[max(0, measured[0] - AROUND) : measured[0] + AROUND + 1], rows[last - 2 * AROUND :]
    began, now = (_training(window) for window in windows)
    if began is None or now is None:
        return None
    ends = rows[measured[0]], rows[last]
    rewards = [_Mean(row["held_out/reward_mean"], row["held_out/reward_std"] ** 2 / (n - 1), n - 1) for row, n in _counted(ends)]
    successes = [_Mean(row["held_out/success"], _share_error(row["held_out/success"], n) ** 2, n - 1) for row, n in _counted(ends)]
    training, reward = _compared(began, now), _compared(*rewards)
    p_apart = _p_value(training.difference - reward.difference, (began, now, *rewards))
    return HeldOutChange(measured[0] + 1, int(rows[last]["held_out/tasks"]), training, reward, _compared(*successes), p_apart)


def _counted(rows: Rows) -> Iterator[tuple[Mapping[str, float], float]]:
    """Rows of measurements, each with how many tasks it is of."""
    return ((row, row["held_out/tasks"]) for row in rows)


def _training(rows: Rows) -> _Mean | None:
    """The mean reward of some steps, without what only training adds to it; None of too few."""
    seen = [row for row in rows if "reward_mean" in row and "rewarded" in row]
    if len(seen) < FEWEST:
        return None
    errors = [row["reward_std"] / math.sqrt(row["rewarded"]) for row in seen]
    return _mean_of([row["reward_mean"] - row.get("reward/overlong", 0.0) for row in seen], errors)


def _share_error(share: float, n: float) -> float:
    """The standard error of a share of n, as Laplace's estimate has it: an error of 0 at 0 and 1 would be too sure."""
    likely = (share * n + 1) / (n + 2)
    return math.sqrt(likely * (1 - likely) / n)


def change_note(rows: Rows) -> str:
    """What the line of a step says of success since the beginning; empty while it is too early to say anything.

    Example: "+24 points since the start", or "no change beyond noise yet".
    """
    found = success_change(rows)
    if found is None:
        return ""
    return f"{100 * found.difference:+.0f} points since the start" if found.beyond_noise else "no change beyond noise yet"
