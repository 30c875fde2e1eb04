"""What the metrics of a step say of held-out tasks, where it was measured on them (`trainer.evaluation.between`)."""

from __future__ import annotations

from collections.abc import Mapping

from .intervals import mean_interval, wilson_interval
from .records import MOST_COUNTED

HELD_OUT = "held_out/"
"""What the names of these metrics begin with."""
SUCCESS, REWARD, DEVIATION, TASKS, SECONDS = (f"{HELD_OUT}{name}" for name in ("success", "reward_mean", "reward_std", "tasks", "seconds"))
Interval = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


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
