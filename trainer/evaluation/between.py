"""What a measurement on held-out tasks in the course of a phase leaves in the metrics of its step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...envs.types import Episode
from ...rollout.store.held_out import HELD_OUT
from ...rollout.store.records import EvaluationResult


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
