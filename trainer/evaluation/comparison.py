"""Two policies on the same held-out tasks: by an exact test where there is one, so that few tasks never say more than they can, and by a
bootstrap otherwise."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...rollout.store.intervals import Z_95, mean_interval
from ...rollout.store.records import Comparison, EvaluationResult, Test
from .statistics import resampled_means

Float64 = NDArray[np.float64]

EXACT = 16
"""Tasks that changed by different amounts up to which all 2^n ways to flip their signs are counted."""
FEW = 30
"""Tasks below which the interval of a mean of graded values is Student's."""
TINY = 1e-12
"""Summing equal and opposite differences may leave 1e-17 instead of 0."""


def paired_test(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Comparison:
    """The mean of after - before, both `[n]` within [0, 1] over the same tasks in the same order, and how likely it is by chance.

    Where every task that changed did so by the same amount (right or wrong, one attempt each), the test is the exact sign test, which is
    McNemar's (1947) in its exact form: five wins of five have p = 1/32. Where up to `EXACT` tasks changed by different amounts, all ways to
    flip their signs are counted (Fisher 1935). Otherwise it is `paired_bootstrap`, seeded by `seed`.
    The interval is that of Agresti and Min (2005) for values of 0 and 1, Student's for fewer than `FEW` graded values, and otherwise a
    bootstrap's.

    Raises ValueError as `paired_bootstrap` does.
    """
    from scipy import stats

    old, new = _paired(before, after)
    differences = new - old
    moved = differences[np.abs(differences) > TINY]
    worse: float | None
    boot = functools.partial(paired_bootstrap, old, new, seed)
    if not len(moved) or np.ptp(np.abs(moved)) <= TINY:
        wins, count = int((moved > 0).sum()), len(moved)
        better, worse = (float(stats.binom.sf(k - 1, count, 0.5)) for k in (wins, count - wins))
        test: Test = "sign test"
    elif len(moved) <= EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        sums = signs @ np.abs(moved)
        better, worse = (float((sums >= sign * moved.sum() - TINY).mean()) for sign in (1, -1))
        test = "sign-flip test"
    else:
        resampled = boot()
        better, worse, test = resampled.p_value, resampled.p_worse, resampled.test
    mean = float(differences.mean())
    if np.isin(np.concatenate([old, new]), (0.0, 1.0)).all():
        low, high = agresti_min_interval(int((moved > 0).sum()), int((moved < 0).sum()), len(differences))
    elif len(differences) < FEW:
        low, high = mean_interval(mean, float(differences.std(ddof=1)), len(differences))
        low, high = max(-1.0, low), min(1.0, high)
    else:
        resampled = boot()
        low, high = resampled.low, resampled.high
    return Comparison(mean, low, high, better, len(differences), p_worse=worse, test=test)


def agresti_min_interval(wins: int, losses: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares: Wald's with half an observation added to each of the four cells
    (Agresti and Min 2005, Statistics in Medicine 24). Unlike a bootstrap it keeps its width when every task was won."""
    total, more, fewer = n + 2, wins + 0.5, losses + 0.5
    centre = (more - fewer) / total
    half = Z_95 * math.sqrt(more + fewer - (more - fewer) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def paired_bootstrap(before: ArrayLike, after: ArrayLike, seed: int = 0, resamples: int = 10_000) -> Comparison:
    """Bootstrap the mean of after - before, both `[n]` over the same tasks in the same order, drawing tasks with replacement.

    The p-values are (1 + resamples with a mean difference <= 0, or >= 0) / (1 + resamples), so they are never zero. Efron and Tibshirani
    (1993), An Introduction to the Bootstrap, chapters 13 and 16; used for systems on one test set by Koehn (2004).
    Raises ValueError on different lengths, fewer than two tasks, or values that are not finite.
    """
    old, new = _paired(before, after)
    differences, n = new - old, len(old)
    (means,) = resampled_means(seed, resamples, differences)
    low, high = np.quantile(means, (0.025, 0.975))
    better, worse = ((1 + int((sign * means <= TINY).sum())) / (1 + resamples) for sign in (1, -1))
    return Comparison(float(differences.mean()), float(low), float(high), better, n, p_worse=worse, test="bootstrap")


def _paired(before: ArrayLike, after: ArrayLike) -> tuple[Float64, Float64]:
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if old.ndim != 1 or old.shape != new.shape:
        raise ValueError(f"a paired comparison needs one value per task on both sides; got shapes {old.shape} and {new.shape}")
    if len(old) < 2:
        raise ValueError(f"a paired comparison needs at least two tasks, got {len(old)}")
    if not np.isfinite(new - old).all():
        raise ValueError("a paired comparison needs finite values; leave failed episodes out instead")
    return old, new


def compare(before: EvaluationResult, after: EvaluationResult, seed: int = 0) -> Comparison:
    """`paired_test` of success over the tasks that both evaluations scored.

    Raises ValueError when the two differ in mode or success part, or share fewer than two tasks.
    """
    for what, old, new in (("mode", before.mode, after.mode), ("success part", before.success_part, after.success_part)):
        if old != new:
            raise ValueError(f"evaluations of a different {what} cannot be compared: {old!r} and {new!r}")
    shared = sorted(before.task_success.keys() & after.task_success.keys())
    unpaired = len(before.task_success.keys() ^ after.task_success.keys())
    result = paired_test([before.task_success[task] for task in shared], [after.task_success[task] for task in shared], seed)
    return replace(result, unpaired=unpaired)


def comparisons(earlier: Mapping[str, EvaluationResult], after: EvaluationResult, seed: int = 0) -> dict[str, Comparison]:
    """`compare` with each earlier evaluation, by name, that shares at least two tasks with this one: fewer compare nothing."""
    alike = {name: result for name, result in earlier.items() if len(result.task_success.keys() & after.task_success.keys()) > 1}
    return {name: compare(before, after, seed) for name, before in alike.items()}
