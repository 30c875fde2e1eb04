"""The interval of a mean, the same wherever one is shown: in evaluations, baselines, curves and drifts."""

from __future__ import annotations

import math
from functools import lru_cache


def mean_interval(mean: float, deviation: float, n: int) -> tuple[float, float]:
    """95 % interval of a mean of n independent values, by Student's t: with few of them it is wider than the normal one. deviation: of the
    sample, with n - 1. One value has no interval: its own place twice.

    Example: `mean_interval(0.0, 1.0, 4)` is about (-1.59, 1.59), where a normal interval would be (-0.98, 0.98).
    """
    if n < 2:
        return mean, mean
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


@lru_cache(maxsize=4096)
def t_quantile(freedom: int) -> float:
    """Of a two-sided 95 % interval, by degrees of freedom. Example: `t_quantile(3)` is about 3.18."""
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))
