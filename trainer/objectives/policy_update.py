"""From episode groups to the numbers of a policy update: advantages, the per-token objective, and what is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...envs.types import EpisodeGroup, Float32, Int32, Trajectory
from ...rollout.weights import SyncProof, check_parity
from ..learner.config import PolicyLossConfig
from .advantages import ADVANTAGES
from .losses import TokenStatistics, is_clipped, k3, ppo_clip


@dataclass(frozen=True, slots=True)
class PolicySample:
    """One trajectory with the advantage of its episode. Example: `PolicySample("train-17/0", trajectory, 0.7)`."""

    episode_id: str
    trajectory: Trajectory
    advantage: float


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """Per-token constants of the objective, each `[T]`: the engine's logprobs, advantages, and the reference's logprobs or None."""

    old_logprobs: Tensor
    advantages: Tensor
    reference: Tensor | None

    def at(self, index: Tensor, device: torch.device) -> PolicyTokens:
        """Those at `index`, on `device`."""
        reference = None if self.reference is None else self.reference[index].to(device)
        return PolicyTokens(self.old_logprobs[index].to(device), self.advantages[index].to(device), reference)


def policy_samples(groups: Sequence[EpisodeGroup], advantage: str) -> list[PolicySample]:
    """Advantages within each group, over the members that have a reward; every trajectory of an episode gets the episode's.

    Raises FloatingPointError when the engine's log-probability of a trainable token is not finite.
    """
    samples = []
    for group in groups:
        rewarded = group.rewarded
        totals = np.array([episode.reward.total for episode in rewarded if episode.reward is not None], dtype=np.float64)
        for episode, value in zip(rewarded, ADVANTAGES[advantage](totals), strict=True):
            for trajectory in episode.trajectories:
                if not np.isfinite(trajectory.logprobs[trajectory.trainable]).all():
                    raise FloatingPointError(f"episode {episode.id}: the engine gave a log-probability that is not finite")
                samples.append(PolicySample(episode.id, trajectory, float(value)))
    return samples


def policy_tokens(samples: Sequence[PolicySample], reference: Tensor | None) -> PolicyTokens:
    """The samples' tokens laid end to end; `reference` already is."""
    advantages = np.repeat(np.array([s.advantage for s in samples], np.float32), [len(s.trajectory) for s in samples])
    old = np.concatenate([s.trajectory.logprobs for s in samples]).astype(np.float32, copy=False)
    return PolicyTokens(torch.from_numpy(old), torch.from_numpy(advantages), reference)


def policy_loss(statistics: TokenStatistics, tokens: PolicyTokens, config: PolicyLossConfig) -> Tensor:
    """Clipped surrogate + kl_coef * k3(policy || reference) - entropy_coef * entropy, per token `[T]`."""
    loss = ppo_clip(statistics.logprobs, tokens.old_logprobs, tokens.advantages, config.clip_low, config.clip_high)
    if tokens.reference is not None:
        loss = loss + config.kl_coef * k3(statistics.logprobs, tokens.reference)
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * statistics.entropy
    return loss


def policy_metrics(logprobs: Tensor, tokens: PolicyTokens, config: PolicyLossConfig) -> dict[str, float]:
    """Means and maxima over trainable tokens, given as `[T]`; see `Learner.update_policy` for what each is."""
    difference = (logprobs - tokens.old_logprobs).abs()
    clipped = is_clipped(logprobs, tokens.old_logprobs, tokens.advantages, config.clip_low, config.clip_high)
    metrics = {
        "parity_max": float(difference.max()),
        "parity_mean": float(difference.mean()),
        "mismatch_kl": float(k3(tokens.old_logprobs, logprobs).mean()),
        "clip_fraction": float(clipped.float().mean()),
    }
    if tokens.reference is not None:
        metrics["reference_kl"] = float(k3(logprobs, tokens.reference).mean())
    return metrics


def prove_parity(
    logprobs: Tensor, samples: Sequence[PolicySample], engines: Mapping[str, str], version: int, bound: float
) -> list[SyncProof]:
    """The proof of the last weight sync, engine by engine; `logprobs` are the learner's, laid end to end, under weights `version`.

    Raises SyncProofError (see `rollout.weights.check_parity`), ValueError when an episode has no engine in `engines`.
    """
    pieces = logprobs.numpy()
    tokens: dict[str, list[tuple[Float32, Float32, Int32]]] = {}
    start = 0
    for sample in samples:
        trajectory = sample.trajectory
        if sample.episode_id not in engines:
            raise ValueError(f"episode {sample.episode_id} is missing from `engines`, which must name the engine of every episode")
        ours = pieces[start : start + len(trajectory)]
        start += len(trajectory)
        at = trajectory.trainable
        tokens.setdefault(engines[sample.episode_id], []).append((ours[at], trajectory.logprobs[at], trajectory.policy_version[at]))
    proofs = []
    for engine, rows in tokens.items():
        learner, sampled, versions = (np.concatenate(column) for column in zip(*rows, strict=True))
        proofs.append(check_parity(engine, version, learner, sampled, versions, bound))
    return proofs
