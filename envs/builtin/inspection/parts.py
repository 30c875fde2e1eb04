"""Parts, their features and the verdict they deserve.

A feature has a nominal size and a symmetric tolerance, in micrometres. Removing material is possible, adding it is not: an internal
feature (a bore) that is too small can be opened up, one that is too large is lost; an external feature (a shaft) the other way round.
A part is scrap when any feature is lost, rework when any can be corrected, and pass otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["pass", "rework", "scrap"]
VERDICTS: tuple[Verdict, ...] = ("pass", "rework", "scrap")
Reason = Literal["within", "oversize", "undersize"]
REASONS: tuple[Reason, ...] = ("within", "oversize", "undersize")

INTERNAL = ("bore", "slot", "groove")
EXTERNAL = ("shaft", "flange", "boss", "rib", "pin")
FEATURE_NAMES = INTERNAL + EXTERNAL

LIMITS_UM = (10, 20, 30, 40, 50, 60)
LARGEST_DEVIATION_UM = 95
MARGIN_UM = 2
"""No deviation lies closer to its limit than this."""


@dataclass(frozen=True, slots=True)
class Level:
    """What makes a difficulty level.

    features: how many a part has. names: which kinds they are of; level 0 knows external ones only. combine: sizes and specifications
    are separate and must be combined, instead of one tool telling deviation and limit. noise: standard deviation of one measurement, as
    a share of the feature's limit. costly: features that take an expensive gauge (cost 3 instead of 1).
    """

    features: int
    names: tuple[str, ...] = FEATURE_NAMES
    combine: bool = False
    noise: float = 0.0
    costly: tuple[str, ...] = ()


LEVELS: Mapping[int, Level] = {
    0: Level(features=2, names=EXTERNAL),
    1: Level(features=3, combine=True),
    2: Level(features=3, combine=True, noise=0.25, costly=("groove", "boss")),
}


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature, sizes in micrometres. Example: `Feature("bore", nominal_um=25_000, limit_um=20, deviation_um=31)`."""

    name: str
    nominal_um: int
    limit_um: int
    deviation_um: int

    @property
    def reason(self) -> Reason:
        """Where the size lies: within the limit, or beyond it on which side."""
        if abs(self.deviation_um) <= self.limit_um:
            return "within"
        return "oversize" if self.deviation_um > 0 else "undersize"

    @property
    def verdict(self) -> Verdict:
        """The verdict this feature alone would give the part."""
        if self.reason == "within":
            return "pass"
        return "scrap" if self.reason == fatal_side(self.name) else "rework"


@dataclass(frozen=True, slots=True)
class Part:
    """A part on the bench. `number` is what is stamped on it; `seed` identifies it uniquely."""

    seed: int
    number: int
    features: tuple[Feature, ...]

    @property
    def verdict(self) -> Verdict:
        """The right verdict."""
        found = {feature.verdict for feature in self.features}
        return "scrap" if "scrap" in found else "rework" if "rework" in found else "pass"

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The reasons that justify the verdict: those of the features that decide it."""
        return tuple(dict.fromkeys(feature.reason for feature in self.features if feature.verdict == self.verdict))

    def feature(self, name: str) -> Feature | None:
        return next((feature for feature in self.features if feature.name == name), None)


def fatal_side(name: str) -> Reason:
    """The side on which a feature is lost: material can be removed, not added."""
    return "oversize" if name in INTERNAL else "undersize"


def reason_for(name: str, verdict: Verdict) -> Reason:
    """The reason that gives a feature this verdict."""
    if verdict == "pass":
        return "within"
    return next(reason for reason in ("oversize", "undersize") if (reason == fatal_side(name)) == (verdict == "scrap"))


def level_of(level: int) -> Level:
    """The level's settings. Raises ValueError for a level that does not exist."""
    if level not in LEVELS:
        raise ValueError(f"quality inspection has levels {', '.join(map(str, LEVELS))}; level {level!r} does not exist")
    return LEVELS[level]


def make_part(seed: int, level: int) -> Part:
    """The part of this seed at this level. The three verdicts are equally likely."""
    rng = np.random.default_rng([seed, level, 0x9A27])
    names = [str(name) for name in rng.choice(level_of(level).names, size=level_of(level).features, replace=False)]
    target: Verdict = VERDICTS[int(rng.integers(3))]
    allowed: dict[Verdict, tuple[Verdict, ...]] = {"pass": ("pass",), "rework": ("pass", "rework"), "scrap": VERDICTS}
    verdicts: list[Verdict] = [allowed[target][int(rng.integers(len(allowed[target])))] for _ in names]
    verdicts[int(rng.integers(len(names)))] = target
    features = tuple(_make_feature(name, verdict, rng) for name, verdict in zip(names, verdicts, strict=True))
    part = Part(seed, int(rng.integers(1, 10)), features)
    assert part.verdict == target
    return part


def _make_feature(name: str, verdict: Verdict, rng: np.random.Generator) -> Feature:
    limit = int(rng.choice(LIMITS_UM))
    if verdict == "pass":
        deviation = int(rng.integers(0, limit - MARGIN_UM + 1)) * int(rng.choice((-1, 1)))
    else:
        sign = 1 if reason_for(name, verdict) == "oversize" else -1
        deviation = int(rng.integers(limit + MARGIN_UM, LARGEST_DEVIATION_UM + 1)) * sign
    return Feature(name, int(rng.integers(10, 100)) * 1000, limit, deviation)


def measured_deviation(part: Part, feature: Feature, repeat: int, noise: float) -> int:
    """What the gauge reads the `repeat`-th time (0, 1, …), in micrometres. Equal histories read equal values."""
    if noise == 0.0:
        return feature.deviation_um
    rng = np.random.default_rng([part.seed, FEATURE_NAMES.index(feature.name), repeat, 0x6A06])
    return round(feature.deviation_um + float(rng.normal(0.0, noise * feature.limit_um)))
