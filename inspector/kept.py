"""What of a run's episodes is not kept, and why, in words."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rollout.store.moments import Moment
from .runs import MetricRow, read_metrics, read_object

AtStep = tuple[str, int]
"""A phase, and its step."""
EARLIER = "removed by hand, or under the [episodes] of an earlier start"
"""Why steps are gone from a run whose recipe bounds nothing."""
FRESH_S = 60.0
"""A step is counted in the metrics before anything of it is stored, for a moment."""


@dataclass(frozen=True, slots=True)
class Kept:
    """steps: of training, that played episodes. gone: those of them whose episodes are not kept. until, share: the bounds of the recipe
    that steps go for, and that groups are left out for, as it writes them; "" where there is none: then steps went for another cause.

    Example: `Kept(40, frozenset({("rft", 1)}), "[episodes] keep = 39", "").line`.
    """

    steps: int
    gone: frozenset[AtStep]
    until: str
    share: str

    @property
    def line(self) -> str:
        """How much is left out, "" where nothing is."""
        why = f": {self.until}" if self.until else f"; the others were {EARLIER}"
        there = f"The episodes of {self.steps - len(self.gone):,} of {self.steps:,} training steps are kept{why}."
        part = f"Of the groups of each training step a share is stored: {self.share}."
        return " ".join([*([there] if self.gone else []), *([part] if self.share else [])])

    def why_none(self, phase: str | None, step: int | None, split: str | None = None, *, by_id: bool = False) -> str:
        """Why there is no episode of training that fits, "" where what is kept does not tell. None fits any. by_id: whether one was asked
        for by its id or its task's, which may be of any step."""
        if split == "heldout":
            return ""
        if by_id and step is None and (gone := sum(phase in (None, one) for one, _ in self.gone)):
            part = f", and a share of each other: {self.share}" if self.share else ""
            return f"not kept are the episodes of {gone:,} training steps: {self.until or EARLIER}{part}"
        fits = sorted(one for one in self.gone if phase in (None, one[0]) and one[1] == step)
        if fits:
            return f"not kept: {self.until or EARLIER}"
        return f"a share of the groups of each training step is stored: {self.share}" if self.share else ""


def kept_of(run: Path) -> Kept:
    """What is kept of a run folder. Raises ValueError naming a file in it that cannot be read."""
    return kept(run, read_object(run, "config.json"), read_metrics(run / "metrics.jsonl"))


def kept(run: Path, config: Mapping[str, Any], metrics: Iterable[MetricRow]) -> Kept:
    """What is kept of a run folder with this config and these metrics."""
    bounds = _bounds(config)
    until = ", ".join(f"[episodes] {key} = {bounds[key]:g}" for key in ("keep", "max_mb") if key in bounds)
    share = f"[episodes] share = {bounds['share']:g}" if has_share(config) else ""
    steps = {(row.phase, row.step): row.time for row in metrics if row.values.get("episodes", 0) > 0}
    return Kept(len(steps), _gone(run, steps, bool(until)), until, share)


def has_share(config: Mapping[str, Any]) -> bool:
    """Whether only a share of the groups of each training step is stored, by a run's config."""
    return _bounds(config).get("share", 1) < 1


def _bounds(config: Mapping[str, Any]) -> dict[str, float]:
    given = config.get("episodes")
    return {key: value for key, value in given.items() if _is_number(value)} if isinstance(given, dict) else {}


def _gone(run: Path, steps: Mapping[AtStep, float], bounded: bool) -> frozenset[AtStep]:
    """Those of the steps of a run, in their order and with the time at which each was counted, that nothing is stored of. Where nothing
    bounds them, only those before one that something is stored of: a loop of one's own need not store any."""
    waiting = _names(run / "transcripts")  # before the store: what it lacks is there
    stored = _names(run / "episodes")
    if any(name.endswith(".jsonl") and Moment.of(Path(name).with_suffix(".parquet")) is None for name in waiting):
        return frozenset()  # a file of many steps
    at = {step: Moment(*step, "train", "sampled") for step in steps}
    there = {step for step, moment in at.items() if moment.file in stored or moment.transcripts in waiting}
    counted = list(steps)
    if not bounded:
        counted = counted[: max((number for number, step in enumerate(counted) if step in there), default=0)]
    elif counted and time.time() - steps[counted[-1]] < FRESH_S:
        counted.pop()
    return frozenset(counted) - there


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
