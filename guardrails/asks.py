"""How often detectors that ask something elsewhere may be called for one request: a judge costs time and money at every call."""

from __future__ import annotations

from typing import Final

MOST_ASKS: Final = 256
"""Calls for one request unless told: by one judge, a streamed answer of 100,000 characters."""
UNASKED: Final = "not asked"
"""The reading of a finding that stands for a judgement that was not asked for."""


class Asks:
    """What is left for one request. Its looks come one after the other, so no lock is needed.

    Example: `[Asks(1).take(), Asks(0).take()] == [True, False]`.
    """

    def __init__(self, most: int = MOST_ASKS) -> None:
        self._left = most

    def take(self) -> bool:
        """Whether one call more may be made; it counts then."""
        self._left -= 1
        return self._left >= 0
