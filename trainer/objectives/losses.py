"""Losses: what is minimised, as values per token of given log-probabilities; and the estimates they are made of, all float32 `[n]`.

A loss gives one value per token and per term. What becomes of them is fixed by the objective: each is multiplied with the token's
weight and its share of the whole batch (`scale`), so a batch may be split into microbatches and ranks in any way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...envs.types import Float32
from .registry import loss


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


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss sees of n trained tokens, each entry `[n]`. For a loss of level "sequence" they are all that the batch holds, in order;
    where several learners share the policy, all of the groups that this learner has, so what is averaged over the batch here would differ.

    logprobs: of the policy that is trained, the one with a gradient; entropy: of its distributions, nats. old_logprobs: of the policy that
    ratios compare with; sampler_logprobs: what the engine sampled with; reference_logprobs: of the frozen reference, or None.
    advantages, weights: of the batch; the learner multiplies the result with the weights, so a loss only looks at them. mask: bool,
    whether the token is trained, True for all. turn, trajectory, group: int32, which of them the token is of. policy_version: int32, the
    weights that sampled it.
    """

    logprobs: Tensor
    entropy: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    reference_logprobs: Tensor | None
    advantages: Tensor
    weights: Tensor
    mask: Tensor
    turn: Tensor
    trajectory: Tensor
    group: Tensor
    policy_version: Tensor


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """terms: what is minimised, by name, each `[n]`; their sum trains. metrics: further values per token `[n]`, averaged for the report.

    Example: `LossOutputs({"policy": -ratio * inputs.advantages}, {"ratio": ratio})`.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@loss("burnish/ppo-clip-v1", level="token")
def ppo_clip(inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> LossOutputs:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), negated: -min(r A, clip(r, 1 - low, 1 + high) A).

    Two bounds rather than one: "clip-higher" of DAPO (Yu et al. 2025, arXiv 2503.14476, section 3.1).
    """
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    surrogate = torch.minimum(ratio * inputs.advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * inputs.advantages)
    clipped = is_clipped(ratio.detach(), inputs.advantages, clip_low, clip_high)
    return LossOutputs({"policy": -surrogate}, {"ratio": ratio.detach(), "clip_fraction": clipped.float()})


@loss("burnish/importance-v1", level="token")
def importance(inputs: LossInputs) -> LossOutputs:
    """The policy gradient with plain importance sampling, -r A: unbiased for the old policy's samples, with nothing to bound r."""
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    return LossOutputs({"policy": -ratio * inputs.advantages}, {"ratio": ratio.detach()})


@loss("burnish/cispo-v1", level="token")
def cispo(inputs: LossInputs, *, clip_low: float = 1.0, clip_high: float = 3.0) -> LossOutputs:
    """CISPO (MiniMax-M1 2025, arXiv 2506.13585, section 3.1): -stop(clip(r, 1 - low, 1 + high)) A log pi.

    The weight is clipped, not the gradient: every token goes on to teach, however far it has moved. A clip_low of 1 bounds nothing.
    """
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs).detach()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return LossOutputs(
        {"policy": -weight * inputs.advantages * inputs.logprobs}, {"ratio": ratio, "clip_fraction": (weight != ratio).float()}
    )


@loss("burnish/gspo-v1", level="sequence", aggregation="sequence")
def gspo(inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> LossOutputs:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071), in its token form: PPO's clip of the sequence's ratio, the exp of its mean log-ratio.

    The value of every token is the sequence's; its gradient is the token's own, so advantages may differ within a sequence. Where they do
    not, it is the gradient of the sequence's loss.
    """
    ratio = per_sequence((inputs.logprobs - inputs.old_logprobs).detach(), inputs.trajectory).exp()
    s = ratio * torch.exp(inputs.logprobs - inputs.logprobs.detach())
    surrogate = torch.minimum(s * inputs.advantages, s.clamp(1.0 - clip_low, 1.0 + clip_high) * inputs.advantages)
    clipped = is_clipped(ratio, inputs.advantages, clip_low, clip_high)
    return LossOutputs({"policy": -surrogate}, {"ratio": ratio, "clip_fraction": clipped.float()})


@loss("burnish/cross-entropy-v1", level="token")
def cross_entropy(inputs: LossInputs) -> LossOutputs:
    """Negative log-likelihood of the tokens: supervised training."""
    return LossOutputs({"cross_entropy": -inputs.logprobs})


@loss("burnish/dpo-v1", level="sequence", aggregation="sequence", reference=True)
def dpo(inputs: LossInputs, *, beta: float = 0.1) -> LossOutputs:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, equation 7): `-log sigmoid(beta (h(chosen) - h(rejected)))`, where h of an answer is the
    sum over its tokens of log pi - log pi_ref.

    A pair is a group of two sequences, of which the tokens of the chosen have advantage 1 and those of the rejected -1. Every token has the
    value of its pair, so the mean over sequences is the mean over pairs.
    """
    pairs, at = torch.unique(inputs.group, return_inverse=True)
    assert inputs.reference_logprobs is not None
    gains = inputs.advantages * (inputs.logprobs - inputs.reference_logprobs)
    margins = beta * gains.new_zeros(len(pairs)).index_add(0, at, gains)
    value = -torch.nn.functional.logsigmoid(margins)[at]
    metrics = {"margin": margins.detach()[at], "preferred": (margins.detach() > 0).float()[at]}
    return LossOutputs({"dpo": value}, metrics)


def is_clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Bool `[n]`: where the clip takes the gradient of `ppo_clip` away."""
    return ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))


def k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """log p - log q at tokens sampled from p: an unbiased estimate of KL(p || q), of either sign. Its gradient is zero on average."""
    return logprobs - other_logprobs


def k2(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: a biased estimate of KL(p || q) whose gradient is, on average, that of KL(p || q)."""
    return 0.5 * (logprobs - other_logprobs).square()


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """q/p - 1 - log(q/p): an unbiased estimate of KL(p || q) that is never negative. Its gradient is, on average, that of KL(q || p)."""
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATES = {"k1": k1, "k2": k2, "k3": k3}
"""Schulman's estimates (http://joschu.net/blog/kl-approx.html) of KL(p || q) per token: (log p, log q) `[n]` -> `[n]`."""


def kl_of(kind: str, logprobs: Float32, other_logprobs: Float32) -> Float32:
    """An estimate of `KL_ESTIMATES` for arrays: float32 `[N]`."""
    given = torch.tensor(logprobs), torch.tensor(other_logprobs)  # copies: what another process measured cannot be written to
    found: Float32 = KL_ESTIMATES[kind](*given).numpy()
    return found


def correction_weights(kind: str, log_ratio: Tensor, trajectory: Tensor, low: float, high: float) -> Tensor:
    """What a token's loss is multiplied with for log_ratio = log pi_old - log pi_sampler, `[n]` to `[n]`, without a gradient.

    "truncate": min(ratio, high), TIS (Yao et al. 2025). "mask": the ratio where it is from low to high, else 0, IcePop (Ling team 2025,
    arXiv 2510.18855). "sequence_mask": 1 for all tokens of a sequence whose geometric mean ratio is from low to high, else 0.
    """
    given = log_ratio.detach()
    if kind == "truncate":
        return given.exp().clamp(max=high)
    ratio = per_sequence(given, trajectory).exp() if kind == "sequence_mask" else given.exp()
    inside = (ratio >= low) & (ratio <= high)
    return inside.to(ratio.dtype) if kind == "sequence_mask" else torch.where(inside, ratio, torch.zeros_like(ratio))


def per_sequence(values: Tensor, sequence: Tensor) -> Tensor:
    """The mean of each sequence's values, at each of its tokens: float `[n]` and int32 `[n]` to float `[n]`, with the gradient.

    For losses of level "sequence". Example: the length-normalised sequence ratio of GSPO (Zheng et al. 2025, arXiv 2507.18071) is
    `per_sequence(inputs.logprobs - inputs.old_logprobs, inputs.trajectory).exp()`.
    """
    index = sequence.long()
    count = int(index.max()) + 1 if len(index) else 0
    sums = values.new_zeros(count).index_add(0, index, values)
    sizes = torch.bincount(index, minlength=count).clamp(min=1)
    return (sums / sizes)[index]
