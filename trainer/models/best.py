"""By what the checkpoints of a phase are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BestBy:
    """By what the steps of a phase compare: metrics, of which the first that differs decides; the lowest is the best, or the highest.
    on: what they are measured on, in words.

    Example: `BestBy(("held_out_loss",), "rows").key({"held_out_loss": 1.5}) == (1.5,)`.
    """

    metrics: tuple[str, ...]
    on: str
    highest: bool = False

    def key(self, values: Mapping[str, float]) -> tuple[float, ...] | None:
        """What is lower the better a step is; None of one that was not measured."""
        if not all(name in values for name in self.metrics):
            return None
        return tuple(-values[name] if self.highest else values[name] for name in self.metrics)

    def is_best(self, rows: Sequence[Mapping[str, float]]) -> bool:
        """Whether the last row is better than each of those before: of equal ones the first is the best."""
        *before, last = (self.key(row) for row in rows)
        return last is not None and all(one is None or last < one for one in before)

    def said(self, values: Mapping[str, float]) -> str:
        """The metrics of a step. Example: "held_out_loss 1.5"."""
        return ", ".join(f"{name} {values[name]:.4g}" for name in self.metrics)
