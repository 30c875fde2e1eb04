"""What a group that has finished is good for: whether it can be learned from, and whether its failures end the run."""

from __future__ import annotations

from collections.abc import Iterable

from ...envs.failures import Failure
from ...envs.types import EpisodeGroup
from ...rewards.terms import rounding
from ...rollout.config import RolloutConfig
from ...rollout.store.ledger import DropReason


class ErrorBudgetSpent(RuntimeError):
    """More episodes failed than the recipe allows, or one failed in a way that stops the run."""


def why_not(group: EpisodeGroup, limits: RolloutConfig, equal_teach: bool = False, size: float = 0.0) -> DropReason | None:
    """Why a group cannot be learned from, or None when it can.

    equal_teach: whether one whose rewards are all equal can. size: of the rewards that a group may have, as far as the recipe or other
    groups show it: near 0, a difference that rounding left is large only beside its own group.
    """
    if any(limits.action_for(failure.kind) == "drop" for failure in failures_of(group)):
        return "failed_member"
    rewards = totals(group)
    if len(rewards) < 2 or not group.comparable:
        return "too_few"
    if not any(trajectory.trainable.any() for episode in group.rewarded for trajectory in episode.trajectories):
        return "no_tokens"
    if equal_teach:
        return None
    return "zero_variance" if max(rewards) - min(rewards) <= rounding(rewards, size) else None


def totals(group: EpisodeGroup) -> list[float]:
    """The rewards of the members that have one."""
    return [episode.reward.total for episode in group.rewarded if episode.reward is not None]


def largest(groups: Iterable[EpisodeGroup]) -> float:
    """The largest size of a reward, 0.0 where there is none."""
    return max((abs(total) for group in groups for total in totals(group)), default=0.0)


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
