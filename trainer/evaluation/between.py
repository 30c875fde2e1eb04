"""What a measurement on held-out tasks in the course of a phase leaves in the metrics of its step, and what can be read from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...envs.types import Episode
from ...rollout.store.intervals import mean_interval
from ...rollout.store.records import MOST_COUNTED, EvaluationResult
from .statistics import wilson_interval

HELD_OUT = "held_out/"
"""What the names of these metrics begin with."""
SUCCESS, REWARD, DEVIATION, TASKS = (f"{HELD_OUT}{name}" for name in ("success", "reward_mean", "reward_std", "tasks"))
Interval = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


def held_out_metrics(result: EvaluationResult, episodes: Sequence[Episode], seconds: float) -> dict[str, float]:
    """The metrics of a measurement that took so many seconds: success, reward_mean and reward_std, reward/PART, turns, tokens and the share
    that was truncated, over the `tasks` whose episode got a reward; episodes and failed count all.

    Example: `held_out_metrics(result, episodes, 12.5)["held_out/success"]` is 0.62.
    """
    totals = [episode.reward.total for episode in episodes if episode.reward is not None]
    measured = {
        "success": result.success,
        "reward_mean": result.reward,
        "reward_std": float(np.std(totals)),
        **{f"reward/{name}": value for name, value in result.parts.items()},
        "turns": result.turns,
        "tokens": result.tokens,
        "truncated": sum(result.truncations.values()) / result.rewarded,
        "tasks": float(len(result.task_success)),
        "episodes": float(result.episodes),
        "failed": float(result.episodes - result.rewarded),
        "seconds": seconds,
    }
    return {f"{HELD_OUT}{name}": float(value) for name, value in measured.items()}


def success_of(row: Mapping[str, float]) -> Interval | None:
    """Success on held-out tasks after a step, with Wilson's interval; None of a row that has none, or none that makes sense."""
    share, tasks = row.get(SUCCESS, -1.0), _tasks(row)
    return (share, *wilson_interval(share, tasks)) if tasks and 0 <= share <= 1 else None


def reward_of(row: Mapping[str, float]) -> Interval | None:
    """The same of the mean reward, with Student's interval over tasks."""
    tasks, spread = _tasks(row), row.get(DEVIATION, -1.0)
    if not tasks or spread < 0 or REWARD not in row:
        return None
    of_sample = spread * (tasks / max(1, tasks - 1)) ** 0.5
    return row[REWARD], *mean_interval(row[REWARD], of_sample, tasks)


def _tasks(row: Mapping[str, float]) -> int:
    """How many tasks a row says that were measured, 0 where it says nothing that makes sense: the file may be anybody's."""
    tasks = row.get(TASKS, 0.0)
    return int(tasks) if 1 <= tasks <= MOST_COUNTED else 0
