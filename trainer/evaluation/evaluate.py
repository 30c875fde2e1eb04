"""Measuring a policy on held-out tasks, with the fleet that trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...envs.types import Episode, EpisodeGroup, Task
from ...rollout.store.records import EvaluationResult, Mode
from ..loop import Fleet, run_tasks
from .statistics import summarize


def evaluate(
    fleet: Fleet,
    tasks: Sequence[Task],
    mode: Mode,
    temperature: float,
    success: str,
    on_group: Callable[[EpisodeGroup], None] | None = None,
) -> tuple[EvaluationResult, list[Episode]]:
    """One episode per task, sampled at `temperature` or greedy, and what they amount to.

    The same task is sampled with the same random numbers whatever the weights, so that evaluations can be compared task by task.
    Raises ValueError when no episode got a reward or none has the part `success`.
    """
    episodes: list[Episode] = []
    for group in run_tasks(fleet, tasks, 1, temperature if mode == "sampled" else 0.0):
        episodes += group.episodes
        if on_group is not None:
            on_group(group)
    episodes.sort(key=lambda episode: episode.task.seed)
    return summarize(episodes, success, mode), episodes
