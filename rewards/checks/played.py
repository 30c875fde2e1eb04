"""What an environment that was played gives its rewards and verifiers to judge."""

from __future__ import annotations

from ...envs.checks.playing import CheckedEpisode
from ..types import RewardInput


def episode_of(played: CheckedEpisode, number: int) -> RewardInput:
    """The episode as a rollout would hand it on. number: of the episode, for its id."""
    info, truncation = played.info, "max_turns" if played.cut else None
    metrics = {**info.metrics, "turns": float(played.turns)}
    messages, task = tuple(played.messages), played.task
    return RewardInput(f"{task.id}/{number}", task, messages, played.reward, info.reward_parts, metrics, info.data, truncation)
