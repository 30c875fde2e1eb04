"""What becomes of one scorer's value on its way into the total: clip, normalise, weight; and gates, which cap the total.

The order is fixed. The value as the scorer gave it is recorded; clipped; normalised; weighted; added up with the others; and then every
gate whose scorer gave less than it asks caps the sum. A gate looks at the value as given, whatever clip and normalize make of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .types import InvalidScore, in_full

Normalize = Literal["minmax", "group"]

EPS = 1e-6
EQUAL = 2e-5
"""Values count as equal when they differ by no more than this share of the largest: what rounding may make of equal ones."""
ROUNDING = 2e-7
"""And when they differ by no more than this share of the terms that they are the sums of: what a float32 keeps of numbers of that size,
where the difference of two was taken and is all that is left."""


@dataclass(frozen=True, slots=True)
class Term:
    """How one scorer counts in the total.

    weight: factor of its value; 0 only reports it. clip: [low, high], values outside are moved to the nearer end. normalize: "minmax" maps
    range = [low, high] onto [0, 1]; "group" standardises within the attempts at one task, (value - mean) / standard deviation, 0 where
    all are equal. gate: the value below which the total is at most cap (0 unless given).

    Raises ValueError when parts of it contradict each other or have no effect.

    Example: `Term(0.5, clip=(0.0, 10.0), normalize="minmax", range=(0.0, 10.0))` turns 2.5 into 0.125.
    """

    weight: float = 1.0
    clip: tuple[float, float] | None = None
    normalize: Normalize | None = None
    range: tuple[float, float] | None = None
    gate: float | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise ValueError(problem)

    @property
    def description(self) -> str:
        """For a person, in the order things happen. Example: `clipped to [0, 1] x 0.5, below 0.5 the total is at most 0`."""
        words = [f"clipped to [{in_full(self.clip[0])}, {in_full(self.clip[1])}]"] if self.clip else []
        if self.range is not None:
            words.append(f"from [{in_full(self.range[0])}, {in_full(self.range[1])}] to [0, 1]")
        words += ["standardised within the group"] if self.normalize == "group" else []
        words.append(f"x {in_full(self.weight)}")
        gate = f", below {in_full(self.gate)} the total is at most {in_full(self.cap or 0.0)}" if self.gate is not None else ""
        return " ".join(words) + gate

    @property
    def only_weighs(self) -> bool:
        """Whether the value goes into the total as it was given, times the weight."""
        return self.clip is None and self.normalize is None

    def shaped(self, value: float) -> float:
        """The value clipped, and mapped by its range. Raises InvalidScore when it lies outside the range that was declared for it."""
        if self.clip is not None:
            value = min(max(value, self.clip[0]), self.clip[1])
        if self.normalize == "minmax":
            assert self.range is not None
            low, high = self.range
            if not low <= value <= high:
                raise InvalidScore(f"{in_full(value)} lies outside range = [{in_full(low)}, {in_full(high)}]; widen it, or clip the value")
            value = (value - low) / (high - low)
        return value

    def size(self, value: float, shaped: float) -> float:
        """How large the number is that this adds to the total, in units of the total: for "minmax", the value before its low end was taken
        away. Example: with range [1000, 1001], 1000.5 adds 0.5, and its size is 1000.5."""
        if self.range is None:
            return abs(self.weight * shaped)
        kept = value if self.clip is None else min(max(value, self.clip[0]), self.clip[1])
        return abs(self.weight) * abs(kept) / (self.range[1] - self.range[0])

    def capped(self, total: float, value: float) -> float:
        """The total after this scorer's gate, which asks about its value as given."""
        if self.gate is None or value >= self.gate:
            return total
        return min(total, self.cap or 0.0)


def rounding(values: Sequence[float], size: float = 0.0) -> float:
    """By how much values of one group may differ and count as equal. size: of the terms that they are the sums of, as far as it is known.

    Example: `rounding([0.0, 1.0])` is 2e-5; `rounding([0.0, 1e-8], size=1.0)` is 2e-7.
    """
    largest = max(map(abs, values), default=0.0)
    return max(EQUAL * largest, ROUNDING * size)


def standardised(values: Sequence[float]) -> list[float]:
    """(value - mean) / (standard deviation + 1e-6) over a group, with the population's standard deviation; zeros when all are equal, or
    differ by rounding (of values of about 1, which the 1e-6 stands for too)."""
    array = np.asarray(values, np.float64)
    if len(array) == 0 or float(array.max()) - float(array.min()) <= rounding(values, 1.0):
        return [0.0] * len(array)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is no finite total, which the rubric refuses
        return [float(value) for value in (array - array.mean()) / (array.std() + EPS)]


def _problem(term: Term) -> str | None:  # noqa: PLR0911  one line per rule
    if not math.isfinite(term.weight):
        return f"weight must be a finite number, not {term.weight!r}"
    for name, interval in (("clip", term.clip), ("range", term.range)):
        if interval is not None and not (interval[0] < interval[1] and math.isfinite(interval[1] - interval[0])):
            return f"{name} must be [low, high] with low < high, not {list(interval)}"
    if term.normalize is not None and term.normalize not in ("minmax", "group"):
        return f'normalize must be "minmax" or "group", not {term.normalize!r}'
    if (term.normalize == "minmax") != (term.range is not None):
        if term.range is None:
            return 'normalize = "minmax" needs range = [low, high], the values that become 0 and 1'
        return 'range has no effect without normalize = "minmax"'
    if term.clip is not None and term.range is not None and not (term.clip[0] < term.range[1] and term.range[0] < term.clip[1]):
        return f"clip = {list(term.clip)} and range = {list(term.range)} do not overlap, so the value would always be the same or invalid"
    if term.weight == 0 and (term.clip is not None or term.normalize is not None):
        return (
            f"{'clip' if term.clip is not None else 'normalize'} has no effect with weight = 0; parts are recorded as the scorer gave them"
        )
    for name, number in (("gate", term.gate), ("cap", term.cap)):
        if number is not None and not math.isfinite(number):
            return f"{name} must be a finite number, not {number!r}"
    if term.cap is not None and term.gate is None:
        return "cap has no effect without gate, the value below which it caps the total"
    return None
