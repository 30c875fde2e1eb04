"""Whether a phase kept a skill: what became of a suite since the base, held to the recipe's limits."""

from __future__ import annotations

from collections.abc import Iterator

from ....rollout.store.records import RetentionRow
from ..config import RetentionConfig
from .scores import Scores
from .transitions import SuiteChange, change


def retention_row(
    phase: str, step: int, base: Scores, again: Scores, after: Scores, limits: RetentionConfig, seed: int = 0, kl: float | None = None
) -> RetentionRow:
    """What became of a suite, and why that refuses the phase's checkpoint its promotion, if it does.

    base, again: two evaluations of the model that the run began with. limits: that the phase is held to. kl: of the policy to that model
    (`evaluation.drift`). Raises ValueError when they cannot be paired (`change`).
    """
    found, floor = change(base, after, seed), change(base, again, seed)
    moved = found.transitions
    return RetentionRow(
        phase=phase,
        step=step,
        suite=found.suite,
        kind=found.kind,
        items=found.items,
        before=found.before,
        after=found.after,
        retention=found.retention,
        low=found.low,
        high=found.high,
        lost=moved.lost if moved is not None else None,
        gained=moved.gained if moved is not None else None,
        forgotten=found.forgotten,
        learned=found.learned,
        significance=found.test.significance,
        floor_retention=floor.retention,
        floor_forgotten=floor.forgotten,
        kl=kl,
        min_retention=limits.min_retention,
        max_lost=limits.max_lost,
        not_promoted="; ".join(_why(found, floor, limits)),
    )


def _why(found: SuiteChange, floor: SuiteChange, limits: RetentionConfig) -> Iterator[str]:
    """The limits that are broken, each with the figure that breaks it."""
    least, most = limits.min_retention, limits.max_lost
    if found.retention is not None and found.retention < least:
        yield f"{found.line}: below min_retention = {least:g}"
    if found.forgotten is not None and found.forgotten - (floor.forgotten or 0.0) > most:
        without = f" and {floor.forgotten:.1%} without training" if floor.forgotten else ""
        yield f"{found.suite}: {found.forgotten:.1%} of {found.items} items forgotten{without}, above max_lost = {most:g}"
