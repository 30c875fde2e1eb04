"""Pauses between attempts."""

from __future__ import annotations


def growing_pause(failures: int, first_s: float, most_s: float) -> float:
    """Seconds to wait after so many failures before: `first_s`, doubled for each, at most `most_s`, however many there were.

    Example: `[growing_pause(n, 0.5, 3.0) for n in (0, 1, 2, 5000)] == [0.5, 1.0, 2.0, 3.0]`.
    """
    return min(first_s * 2.0 ** min(failures, 64), most_s)
