"""Measuring a policy on held-out tasks, with the fleet that trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...envs.types import Episode, EpisodeGroup, Reward, Task
from ...rollout.store.records import EvaluationResult, Mode
from ...rollout.weights import SyncProofError
from ..playing import Fleet, run_tasks
from .statistics import SuccessWatch, summarize


def evaluate(
    fleet: Fleet,
    tasks: Sequence[Task],
    mode: Mode,
    temperature: float,
    success: str,
    on_group: Callable[[EpisodeGroup], None] | None = None,
    error_budget: float = 1.0,
    version: int | None = None,
) -> tuple[EvaluationResult, list[Episode]]:
    """One episode per task, sampled at `temperature` or greedy, and what they amount to.

    The same task is sampled with the same random numbers whatever the weights, so that evaluations can be compared task by task.
    on_group: called with each as it finishes, so that episodes can be kept whatever comes of the evaluation.
    version: the weights that are measured; raises SyncProofError when a turn was sampled by others.
    Raises EvaluationFailed when too many episodes failed, ValueError as soon as the part `success` turns out missing or out of range.
    """
    episodes: list[Episode] = []
    watch = SuccessWatch(success)
    for group in run_tasks(fleet, tasks, 1, temperature if mode == "sampled" else 0.0):
        episodes += group.episodes
        if version is not None:
            check_version(group, version)
        if on_group is not None:
            on_group(group)
        for episode in group.episodes:
            if isinstance(episode.outcome, Reward):
                watch.value(episode, episode.outcome)
    episodes.sort(key=lambda episode: episode.task.seed)
    return summarize(episodes, success, mode, error_budget), episodes


def check_version(group: EpisodeGroup, version: int) -> None:
    """Raise SyncProofError when a turn of the group was sampled by other weights than those of `version`."""
    for episode in group.episodes:
        others = {int(v) for turn in episode.turns for v in np.unique(turn.policy_version)} - {version}
        if others:
            raise SyncProofError(
                f"engine {episode.engine}: episode {episode.id} was sampled by weights {min(others)}, and {version} are to be measured; "
                "it missed a weight update"
            )
