"""What of a run's episodes is not kept, where its recipe bounds them, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rollout.store.moments import moments
from .runs import MetricRow, read_metrics, read_object

AtStep = tuple[str, int]
"""A phase, and its step."""


@dataclass(frozen=True, slots=True)
class Kept:
    """steps: of training, that played episodes. gone: those of them whose episodes are not kept. until, share: the bounds of the recipe
    that steps go for, and that groups are left out for, as it writes them; "" where there is none.

    Example: `Kept(40, frozenset({("rft", 1)}), "[episodes] keep = 39", "").line`.
    """

    steps: int
    gone: frozenset[AtStep]
    until: str
    share: str

    @property
    def line(self) -> str:
        """How much is left out, "" where nothing is."""
        there = f"The episodes of {self.steps - len(self.gone):,} of {self.steps:,} training steps are kept: {self.until}."
        part = f"Of the groups of each training step a share is stored: {self.share}."
        return " ".join([*([there] if self.gone else []), *([part] if self.share else [])])

    def why_none(self, phase: str | None, step: int | None, split: str | None = None) -> str:
        """Why there is no episode of training that fits, "" where what is kept does not tell. None fits any."""
        if split == "heldout":
            return ""
        fits = sorted(one for one in self.gone if phase in (None, one[0]) and one[1] == step)
        if fits:
            return f"not kept: {self.until}"
        return f"a share of the groups of each training step is stored: {self.share}" if self.share else ""


def kept_of(run: Path) -> Kept:
    """What is kept of a run folder. Raises ValueError naming a file in it that cannot be read."""
    return kept(run, read_object(run, "config.json"), read_metrics(run / "metrics.jsonl"))


def kept(run: Path, config: Mapping[str, Any], metrics: Iterable[MetricRow]) -> Kept:
    """What is kept of a run folder with this config and these metrics."""
    given = config.get("episodes")
    bounds = {key: value for key, value in given.items() if _is_number(value)} if isinstance(given, dict) else {}
    until = ", ".join(f"[episodes] {key} = {bounds[key]:g}" for key in ("keep", "max_mb") if key in bounds)
    share = f"[episodes] share = {bounds['share']:g}" if bounds.get("share", 1) < 1 else ""
    steps = list(dict.fromkeys((row.phase, row.step) for row in metrics if row.values.get("episodes", 0) > 0))
    there = {(moment.phase, moment.step) for _, moment in moments(run / "episodes") if moment.split == "train"} if until else set()
    last = max((number for number, step in enumerate(steps) if step in there), default=0)  # what came since is being written
    return Kept(len(steps), frozenset(steps[:last]) - there, until, share)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
