"""Whether a canary is worse than the version that it is compared with: a test that may be looked at after every answer.

Verdicts come in pairs, one of the canary and one of the primary. Against "the canary passes at least as often" stands an e-process: the
mean, over pairs of rates c < p on a grid, of the likelihood of the verdicts under (c, p), divided by that under the mean of both,
z = (c + p) / 2 (Turner, Ly and Grunwald, 2024, arXiv 2106.02693).

Each factor has a mean of at most 1 when the canary is not worse. With d = p - z, v = z (1 - z), and true rates z + a of the canary and
z + b of the primary, a pair's mean is (1 - d a / v) (1 + d b / v) = 1 - (d / v) (a - b) - (d / v)^2 a b. For a >= b that is at most 1
where a b >= 0; else a > 0 > b, and (d / v) a |b| <= a + |b|, because a |b| / (a + |b|) <= v and d <= 1. So by Ville's inequality the
evidence ever reaches 1 / error with a probability of at most `error`, however many verdicts there are.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Final

RATES: Final = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)
"""Of passing, that a worse canary and its primary may have."""


def _logs(worse: float, better: float) -> tuple[float, float, float, float]:
    """What a verdict adds to the logarithm: of the canary passed and failed, of the primary passed and failed."""
    mean = (worse + better) / 2
    return (
        math.log(worse / mean),
        math.log((1 - worse) / (1 - mean)),
        math.log(better / mean),
        math.log((1 - better) / (1 - mean)),
    )


_ALTERNATIVES: Final = tuple(_logs(worse, better) for worse, better in combinations(RATES, 2))


def log_evidence(pairs: int, canary_passed: int, primary_passed: int) -> float:
    """The natural logarithm of the evidence that the canary is worse, after so many pairs of verdicts; 0 before any.

    Example: `log_evidence(25, 5, 25) > math.log(1 / 0.05)`: enough at an error of 5 %.
    """
    assert 0 <= canary_passed <= pairs
    assert 0 <= primary_passed <= pairs
    found = [
        canary_passed * yes + (pairs - canary_passed) * no + primary_passed * right + (pairs - primary_passed) * wrong
        for yes, no, right, wrong in _ALTERNATIVES
    ]
    highest = max(found)
    return highest + math.log(math.fsum(math.exp(one - highest) for one in found) / len(found))
