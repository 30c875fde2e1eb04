"""Losses as plain functions of per-token log-probabilities, all float32 `[T]`.

They return the value per token; the learner sums and divides by the trainable tokens of the whole batch (token mean: Yu et al. 2025,
DAPO, arXiv 2503.14476, section 3.3), however many microbatches it took.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """Of each target token under a row of logits: its log-probability `[T]`, and the entropy of the whole row in nats `[T]`."""

    logprobs: Tensor
    entropy: Tensor


def token_statistics(logits: Tensor, targets: Tensor, temperature: float = 1.0, entropy_grad: bool = False) -> TokenStatistics:
    """`logits [T, V]` in any float type and `targets` int64 `[T]`; computed in float32, after dividing the logits by `temperature`.

    The entropy carries a gradient only when `entropy_grad`: as a metric it should cost no backward pass.
    """
    logp_TV = torch.log_softmax(logits.float() if temperature == 1.0 else logits.float() / temperature, dim=-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(logp_TV.exp() * logp_TV).sum(-1)
    return TokenStatistics(logp_TV.gather(-1, targets[:, None]).squeeze(-1), entropy)


def ppo_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), negated: -min(r A, clip(r, 1 - low, 1 + high) A).

    Two bounds rather than one: "clip-higher" of DAPO (arXiv 2503.14476, section 3.1).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)


def is_clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Bool `[T]`: where the clip takes the gradient of `ppo_clip` away."""
    ratio = torch.exp(logprobs - old_logprobs)
    return ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate (http://joschu.net/blog/kl-approx.html) of KL(p || q) at tokens sampled from p: q/p - 1 - log(q/p).

    `logprobs` is log p, `other_logprobs` log q. Unbiased, never negative.
    """
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def cross_entropy(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of the target tokens."""
    return -logprobs
