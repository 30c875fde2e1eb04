"""What a group that has finished is good for: whether it can be learned from, and whether its failures end the run."""

from __future__ import annotations

from ...envs.failures import Failure
from ...envs.types import EpisodeGroup
from ...rollout.config import RolloutConfig
from ...rollout.store.ledger import DropReason

EQUAL = 2e-5
"""Rewards of a group count as equal when they differ by no more than this share of the largest: what rounding may make of equal ones."""


class ErrorBudgetSpent(RuntimeError):
    """More episodes failed than the recipe allows, or one failed in a way that stops the run."""


def why_not(group: EpisodeGroup, limits: RolloutConfig, equal_teach: bool = False) -> DropReason | None:
    """Why a group cannot be learned from, or None when it can. equal_teach: whether one whose rewards are all equal can."""
    if any(limits.action_for(failure.kind) == "drop" for failure in failures_of(group)):
        return "failed_member"
    rewards = [episode.reward.total for episode in group.rewarded if episode.reward is not None]
    if len(rewards) < 2 or not group.comparable:
        return "too_few"
    if not any(trajectory.trainable.any() for episode in group.rewarded for trajectory in episode.trajectories):
        return "no_tokens"
    if equal_teach:
        return None
    return "zero_variance" if max(rewards) - min(rewards) <= EQUAL * max(map(abs, rewards)) else None


def oldest_version(group: EpisodeGroup) -> int:
    """Of the weights that sampled the trained tokens of a group."""
    trajectories = [trajectory for episode in group.rewarded for trajectory in episode.trajectories]
    return min(int(one.policy_version[one.trainable].min()) for one in trajectories if one.trainable.any())


def failures_of(group: EpisodeGroup) -> list[Failure]:
    """Why members of a group have no reward."""
    return [episode.outcome for episode in group.episodes if isinstance(episode.outcome, Failure)]


def stop_if_asked(group: EpisodeGroup, limits: RolloutConfig) -> None:
    """Raise ErrorBudgetSpent when an episode failed in a way that the recipe answers with "stop"."""
    for episode in group.episodes:
        if isinstance(episode.outcome, Failure) and limits.action_for(episode.outcome.kind) == "stop":
            raise ErrorBudgetSpent(f"episode {episode.id} failed and rollout.on_failure says stop: {episode.outcome}")
