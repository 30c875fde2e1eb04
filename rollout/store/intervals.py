"""The interval of a mean or a share, the same wherever one is shown: in evaluations, baselines, curves and drifts."""

from __future__ import annotations

import math
from functools import lru_cache

Z_95 = 1.959964  # standard normal quantile of 0.975


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


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share over n independent trials (Wilson 1927). Unlike a bootstrap it keeps its width at 0 and 1.

    Also holds, conservatively, when each trial is a mean within [0, 1] instead of 0 or 1.
    """
    assert n > 0
    assert 0 <= share <= 1
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
