"""Advantages: how much better each episode did than its fellows, as a value per token of the batch. docs/algorithms.md has the formulas."""

from __future__ import annotations

from math import comb
from typing import Literal

import numpy as np

from ...envs.types import Bool, Float32
from ...rewards.terms import rounding
from ..batch import Float64, GroupBatch, alike, levelled
from .registry import advantage


def normalised(rewards: Float64, eps: float = 1e-6) -> Float64:
    """(r - mean) / (std + eps) of one group's rewards `[G]`, with the population's standard deviation.

    A group whose rewards are all equal, or differ by rounding (`batch.alike`), says nothing about what to prefer: exactly zeros.
    """
    if alike(rewards):
        return np.zeros_like(rewards)
    values: Float64 = (rewards - rewards.mean()) / (rewards.std() + eps)
    return values


def centred(rewards: Float64) -> Float64:
    """r - mean of one group's rewards `[G]`; exactly zeros when all are `alike`. `[0, 0, 1, 1]` gives `[-0.5, -0.5, 0.5, 0.5]`."""
    values: Float64 = np.zeros_like(rewards) if alike(rewards) else rewards - rewards.mean()
    return values


def left_out(rewards: Float64) -> Float64:
    """r less the mean of the others of the group `[G]`; zeros for a group of one. `[1, 0, 0]` gives `[1, -0.5, -0.5]`."""
    return centred(rewards) * (len(rewards) / max(len(rewards) - 1, 1))


def best_of(rewards: Float64, k: int) -> Float64:
    """By how much each of a group's rewards `[G]` raises the best of k, averaged over all sets of k - 1 others; k <= G.

    The best of k - 1 others is the j-th smallest of all G - 1 with probability C(j - 1, k - 2) / C(G - 1, k - 1).
    """
    rewards, others = levelled(rewards), len(rewards) - 1
    chance = np.array([comb(j, k - 2) for j in range(others)], np.float64) / comb(others, k - 1)
    gains = [np.maximum(reward - np.sort(np.delete(rewards, i)), 0.0) @ chance for i, reward in enumerate(rewards)]
    return np.array(gains, np.float64)


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


@advantage("burnish/rloo-v1")
def rloo(batch: GroupBatch) -> Float32:
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740): the reward less the mean of the group's others."""
    return batch.per_token(batch.by_group(left_out))


@advantage("burnish/reinforce-pp-v1")
def reinforce_pp(batch: GroupBatch, *, baseline: Literal["batch", "group"] = "batch", eps: float = 1e-6) -> Float32:
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): the reward to go, with mean 0 and deviation 1 over the trained tokens of the batch.

    baseline: "group" takes the mean of each group's rewards away first, the paper's REINFORCE++-baseline.
    """
    mask = batch.tokens.mask
    values = batch.to_go() if baseline == "batch" else batch.by_group(centred)[batch.episode]
    return standard(values, mask, eps)


def standard(values: Float64, mask: Bool, eps: float, taken_from: float = 0.0) -> Float32:
    """(value - mean) / (std + eps) over the trained tokens of a batch, float32 `[N]`; zeros where they differ by rounding at most.
    taken_from: size of the numbers whose differences the values are."""
    trained = values[mask]
    if alike(trained) or np.ptp(trained) <= rounding([taken_from]):
        return np.zeros(len(values), np.float32)
    return np.where(mask, (values - trained.mean()) / (trained.std() + eps), 0.0).astype(np.float32)


@advantage("burnish/pass-at-k-v1")
def pass_at_k(batch: GroupBatch, *, k: int) -> Float32:
    """For the best of k attempts instead of the mean (Walder and Karkhanis 2025, arXiv 2505.15201): what each adds to k - 1 others.

    A group of which fewer than k members ended in a reward counts with as many as there are. Raises ValueError when k is less than 2.
    """
    if k < 2:
        raise ValueError(f"advantage 'pass_at_k', option 'k': must be at least 2, not {k}")
    return batch.per_token(batch.by_group(lambda rewards: best_of(rewards, min(k, len(rewards))) if len(rewards) > 1 else 0.0 * rewards))


@advantage("burnish/grpo-per-turn-v1")
def grpo_per_turn(batch: GroupBatch) -> Float32:
    """Credit per turn: what a turn and those after it earned, less the mean of that over the group's episodes that got as far.

    The reward to go of turn t is the sum of `Reward.credit` from t on and of what the total holds beside the credit, which is earned at
    the end. With no reward judged turn by turn, every turn gets the Dr. GRPO advantage of its episode among those that got as far.
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
    of_episode = batch.episode == e
    turn = batch.tokens.turn[of_episode]
    earned = np.zeros(max(int(turn.max(initial=-1)) + 1, len(reward.credit)))
    earned[: len(reward.credit)] = reward.credit
    if batch.token_rewards is not None:
        trained = turn >= 0
        np.add.at(earned, turn[trained], batch.token_rewards[of_episode][trained].astype(np.float64))
    at_the_end = reward.total - sum(reward.credit)
    to_go: Float64 = np.cumsum(earned[::-1])[::-1] + at_the_end
    return to_go


@advantage("burnish/gae-v1")
def gae(batch: GroupBatch, *, lam: float = 0.95, normalise: bool = True, eps: float = 1e-8) -> Float32:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16), over trained tokens, not discounted.

    normalise: to mean 0 and deviation 1 over the trained tokens of the batch. Raises ValueError where there is no critic, or lam is not
    in [0, 1].
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"advantage 'gae', option 'lam': must be from 0 to 1, not {lam}")
    values, mask = beyond_expected(batch, lam), batch.tokens.mask
    if not normalise:
        return np.where(mask, values, 0.0).astype(np.float32)
    assert batch.values is not None
    return standard(values, mask, eps, float(np.abs(np.append(batch.values[mask], batch.rewards)).max(initial=0.0)))


def beyond_expected(batch: GroupBatch, lam: float) -> Float64:
    """sum over k of lam^k delta_(t+k), where delta_t = earned_t + V_(t+1) - V_t: float64 `[N]`, 0 outside the mask.

    The next token is the next that is trained, whoever spoke in between; after the last one nothing more is expected, also where a limit
    cut the episode short: its reward is that of what there is. With lam = 1 it is what was earned from t on, less V_t.
    """
    if batch.values is None:
        raise ValueError("advantage 'gae' needs a critic: write algorithm = \"ppo\", or add a table [rft.critic]")
    earned, found = token_earnings(batch), np.zeros(len(batch.episode))
    for e in range(len(batch.episodes)):
        at = np.flatnonzero((batch.episode == e) & batch.tokens.mask)
        expected = np.append(batch.values[at].astype(np.float64), 0.0)
        deltas, following = earned[at] + expected[1:] - expected[:-1], 0.0
        for i in range(len(at) - 1, -1, -1):
            following = found[at[i]] = deltas[i] + lam * following
    return found


def token_earnings(batch: GroupBatch) -> Float64:
    """What each trained token earned, float64 `[N]`: the credit of a turn at its last token, the rest of the episode's reward at the
    episode's last, and `token_rewards` where they are. An episode's tokens earn its reward together."""
    earned = np.zeros(len(batch.episode))
    for e, episode in enumerate(batch.episodes):
        at = np.flatnonzero((batch.episode == e) & batch.tokens.mask)
        if not len(at):
            continue
        assert episode.reward is not None
        turns, left = batch.tokens.turn[at], episode.reward.total
        for turn, value in enumerate(episode.reward.credit):
            if len(of_turn := at[turns == turn]):
                earned[of_turn[-1]] += value
                left -= value
        earned[at[-1]] += left
    if batch.token_rewards is not None:
        earned += np.where(batch.tokens.mask, batch.token_rewards.astype(np.float64), 0.0)
    return earned
