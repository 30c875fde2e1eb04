"""What becomes of an episode's reward before groups are compared: episodes that ran long."""

from __future__ import annotations

from dataclasses import replace

from ...envs.types import Episode, EpisodeGroup
from .config import OverlongConfig

PART = "overlong"
"""The part of the reward that the penalty is reported as."""
CUT_SHORT = frozenset({"max_tokens", "max_turns", "context", "time"})
"""The truncations that say an episode was too long for a limit of the rollout; "env" is a limit of the environment's own."""


def overlong_penalty(sampled: int, tokens: int, buffer: int, penalty: float) -> float:
    """What is added to the reward of an episode that sampled so many tokens (DAPO, Yu et al. 2025, arXiv 2503.14476, equation 13).

    0 up to tokens - buffer, -penalty from `tokens` on, linear between. Example: `overlong_penalty(90, 100, 20, 1.0)` is -0.5.
    """
    over = (sampled - (tokens - buffer)) / buffer
    return -penalty * min(max(over, 0.0), 1.0)


def shaped(group: EpisodeGroup, overlong: OverlongConfig) -> EpisodeGroup:
    """The group with the penalty in its rewards; failed episodes stay as they are. overlong: with its numbers written out."""
    if overlong.action != "penalty":
        return group
    return replace(group, episodes=tuple(_penalised(episode, overlong) for episode in group.episodes))


def without_cut_short(group: EpisodeGroup, overlong: OverlongConfig) -> tuple[EpisodeGroup, tuple[Episode, ...]]:
    """The group to learn from, and the rewarded episodes that are masked because a limit cut them short."""
    if overlong.action != "mask":
        return group, ()
    masked = tuple(episode for episode in group.rewarded if episode.truncation in CUT_SHORT)
    names = {episode.id for episode in masked}
    return replace(group, episodes=tuple(episode for episode in group.episodes if episode.id not in names)), masked


def _penalised(episode: Episode, overlong: OverlongConfig) -> Episode:
    reward = episode.reward
    if reward is None:
        return episode
    assert overlong.tokens is not None and overlong.buffer is not None and overlong.penalty is not None
    sampled = sum(int(trajectory.trainable.sum()) for trajectory in episode.trajectories)
    part = overlong_penalty(sampled, overlong.tokens, overlong.buffer, overlong.penalty)
    return replace(
        episode, outcome=replace(reward, total=reward.total + part, parts={**reward.parts, PART: part}, size=reward.size + abs(part))
    )
