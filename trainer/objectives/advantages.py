"""Advantages: how much better each episode did than its fellows, as a value per token of the batch."""

from __future__ import annotations

import numpy as np

from ...envs.types import Float32
from ..batch import Float64, GroupBatch
from .registry import advantage


def normalised(rewards: Float64, eps: float = 1e-6) -> Float64:
    """(r - mean) / (std + eps) of one group's rewards `[G]`, with the population's standard deviation.

    A group whose rewards are all equal says nothing about what to prefer: exactly zeros.
    """
    if len(rewards) == 0 or np.ptp(rewards) == 0.0:
        return np.zeros_like(rewards)
    values: Float64 = (rewards - rewards.mean()) / (rewards.std() + eps)
    return values


def centred(rewards: Float64) -> Float64:
    """r - mean of one group's rewards `[G]`; exactly zeros when all are equal. `[0, 0, 1, 1]` gives `[-0.5, -0.5, 0.5, 0.5]`."""
    values: Float64 = rewards - rewards.mean() if len(rewards) and np.ptp(rewards) else np.zeros_like(rewards)
    return values


@advantage("burnish/grpo-v1")
def grpo(batch: GroupBatch, *, eps: float = 1e-6) -> Float32:
    """GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2): each group's rewards with mean 0 and deviation 1."""
    return batch.per_token(batch.by_group(lambda rewards: normalised(rewards, eps)))


@advantage("burnish/dr-grpo-v1")
def dr_grpo(batch: GroupBatch) -> Float32:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783, section 3.2): each group's rewards with mean 0.

    Without the division, a group that differs only in a small part of the reward (the price of a tool call) weighs as little as that
    part does, instead of as much as a group in which some succeed and others fail.
    """
    return batch.per_token(batch.by_group(centred))


@advantage("burnish/grpo-per-turn-v1")
def grpo_per_turn(batch: GroupBatch) -> Float32:
    """Credit per turn: what a turn and those after it earned, less the mean of that over the group's episodes that got as far.

    The reward to go of turn t is the sum of `Reward.credit` from t on and of what the total holds beside the credit, which is earned at
    the end. With no reward judged turn by turn, every turn gets the Dr. GRPO advantage of its episode.
    """
    to_go = [_reward_to_go(batch, e) for e in range(len(batch.episodes))]
    values = [np.zeros(len(returns)) for returns in to_go]
    for g in range(len(batch.groups)):
        members = np.flatnonzero(batch.group == g)
        for turn in range(max((len(to_go[e]) for e in members), default=0)):
            there = [e for e in members if len(to_go[e]) > turn]
            for e, value in zip(there, centred(np.array([to_go[e][turn] for e in there])), strict=True):
                values[e][turn] = value
    return batch.per_turn(values)


def _reward_to_go(batch: GroupBatch, e: int) -> Float64:
    """float64 `[turns]` of episode number `e`."""
    reward = batch.episodes[e].reward
    assert reward is not None
    turn = batch.tokens.turn[batch.episode == e]
    credit = np.zeros(max(int(turn.max(initial=-1)) + 1, len(reward.credit)))
    credit[: len(reward.credit)] = reward.credit
    at_the_end = reward.total - sum(reward.credit)
    to_go: Float64 = np.cumsum(credit[::-1])[::-1] + at_the_end
    return to_go
