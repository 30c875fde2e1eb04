"""What a group that has finished is good for: whether it can be learned from, and whether its failures end the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ...envs.failures import Failure
from ...envs.types import EpisodeGroup, Reward
from ...rewards.terms import rounding
from ...rollout.config import RolloutConfig
from ...rollout.store.ledger import DropReason

NOTHING: Mapping[str, float] = MappingProxyType({})


class ErrorBudgetSpent(RuntimeError):
    """More episodes failed than the recipe allows, or one failed in a way that stops the run."""


def why_not(
    group: EpisodeGroup, limits: RolloutConfig, equal_teach: bool = False, declared: Mapping[str, float] = NOTHING
) -> DropReason | None:
    """Why a group cannot be learned from, or None when it can.

    equal_teach: whether one whose rewards are all equal can. declared: `rewards.config.declared_sizes`. Equal are rewards that differ by
    `rewards.terms.rounding` at most, as far as the group itself says: no other group, and no bound that its rewards are far from.
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
    return "zero_variance" if max(rewards) - min(rewards) <= rounding(rewards, size_of(rewards_of(group), declared)) else None


def rewards_of(group: EpisodeGroup) -> list[Reward]:
    """The rewards of the members that have one."""
    return [episode.reward for episode in group.rewarded if episode.reward is not None]


def totals(group: EpisodeGroup) -> list[float]:
    """Their totals."""
    return [reward.total for reward in rewards_of(group)]


def size_of(rewards: Sequence[Reward], declared: Mapping[str, float] = NOTHING) -> float:
    """How large the numbers are that a group's rewards were computed from: the terms of the totals, and what `declared` says of each part
    that is not the same in all of them.

    Example: `size_of([Reward(0.0, {"verdict": 0.0}), Reward(5e-9, {"verdict": 1e-8})], {"verdict": 0.5})` is 0.5.
    """
    uneven = [size for part, size in declared.items() if len({reward.parts.get(part, 0.0) for reward in rewards}) > 1]
    return max((reward.size for reward in rewards), default=0.0) + sum(uneven)


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
