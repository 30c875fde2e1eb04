"""What held-out tasks said in the course of a phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..rollout.store.held_out import TASKS, Interval, reward_of, success_of
from .charts import Series
from .runs import RecordedRun

DASHED = "dashed: on held-out tasks"


def held_out_series(run: RecordedRun, phase: str, of: Callable[[Mapping[str, float]], Interval | None]) -> Series | None:
    """A measure of the phase's steps that were measured on held-out tasks, with its interval; None where none was. of: a row of metrics
    (`success_of`, `reward_of`)."""
    latest = {row.step: found for row in run.metrics if row.phase == phase and (found := of(row.values)) is not None}
    return Series("on held-out tasks", tuple((step, *latest[step]) for step in sorted(latest)), dashed=True) if latest else None


def held_out_rows(run: RecordedRun) -> list[dict[str, Any]]:
    """What each step that was measured on held-out tasks came to, for a program."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for row in run.metrics:
        success, reward = success_of(row.values), reward_of(row.values)
        if success is not None and reward is not None:
            shares = dict(zip(("success", "low", "high"), success, strict=True))
            rows[row.phase, row.step] = {
                "phase": row.phase, "step": row.step, **shares, "reward": reward[0], "tasks": int(row.values[TASKS]),
            }  # fmt: skip
    return list(rows.values())
