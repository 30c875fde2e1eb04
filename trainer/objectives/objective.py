"""The objective of an update: a loss with its options, what is added to it, and how tokens are averaged.

Torch is imported when an objective is used, so that one can be made where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...envs.types import Float32
from ..batch import TokenBatch
from .config import KL, Aggregation, Correction, ObjectiveConfig
from .registry import Loss, find_loss, loss_of

if TYPE_CHECKING:
    from .losses import LossInputs, LossOutputs


@dataclass(frozen=True)
class Objective:
    """What `Learner.forward_backward` minimises.

    loss: a name that `find_loss` knows, or a function of `LossInputs`, which becomes a `Loss`: with what it was registered with, if it was,
    and of level "sequence" otherwise. args: its options; a function takes them at once. temperature: what the engine
    sampled with, so that log-probabilities compare like with like. kl_coef: of a KL in the loss. correction acts between the ratios of
    `band`. own_old: whether the old policy is the one that is trained, as it is now, instead of the batch's `old_logprobs`: what a step of
    one update with a correction needs. The rest is as in `ObjectiveConfig`.

    Example: `Objective("ppo_clip", {"clip_high": 0.28}, kl_coef=0.01)`, or `Objective(my_loss, aggregation="sequence")`.
    """

    loss: str | Loss | Callable[..., LossOutputs] = "ppo_clip"
    args: Mapping[str, Any] = field(default_factory=dict)
    aggregation: Aggregation | None = None
    constant_tokens: int | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    temperature: float = 1.0
    kl: KL = "k3"
    correction: Correction = "none"
    band: tuple[float, float] = (0.0, float("inf"))
    own_old: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.loss, str | Loss):  # here, where it is registered and annotated: a learner may know it by its code alone
            object.__setattr__(self, "loss", find_loss(loss_of(self.loss), self.args))
            object.__setattr__(self, "args", {})

    def resolved(self) -> Loss:
        """The loss, with options set, of level "sequence" where the correction is. Raises ValueError when it is unknown or misfit."""
        assert isinstance(self.loss, str | Loss)
        found = find_loss(self.loss, self.args)
        return replace(found, level="sequence") if self.correction == "sequence_mask" else found

    def scale(self, batch: TokenBatch, aggregation: Aggregation) -> Float32:
        """What each token's loss is multiplied with, float32 `[N]`: its weight over the denominator of the whole batch.

        "token": 1 / trained tokens. "sequence": 1 / (trained sequences x the sequence's trained tokens). "constant": 1 / (trained
        sequences x constant_tokens), as in Dr. GRPO (Liu et al. 2025, arXiv 2503.20783). A sequence without trained tokens counts nowhere.
        """
        lengths = np.bincount(batch.sequence[batch.mask], minlength=len(batch.lengths)).astype(np.float64)
        sequences = max(int((lengths > 0).sum()), 1)
        if aggregation == "token":
            share = np.full(len(lengths), 1.0 / max(lengths.sum(), 1.0))
        elif aggregation == "sequence":
            share = 1.0 / (sequences * np.maximum(lengths, 1.0))
        else:
            assert self.constant_tokens is not None
            share = np.full(len(lengths), 1.0 / (sequences * self.constant_tokens))
        return np.where(batch.mask, share[batch.sequence] * batch.weights, 0.0).astype(np.float32)

    def with_scale(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its scale, so that parts of it can be computed apart; one that has a scale keeps it."""
        if batch.scale is not None:
            return batch
        return replace(batch, scale=self.scale(batch, self.aggregation or self.resolved().aggregation))


CROSS_ENTROPY = Objective("cross_entropy")
"""Supervised training: the mean negative log-likelihood of the trained tokens."""


def objective_of(config: ObjectiveConfig, temperature: float, updates: int = 1) -> Objective:
    """The objective that a recipe's table asks for. updates: of one step, as in `RFTPhaseConfig`."""
    correction = config.correction or "none"
    return Objective(
        config.loss,
        config.loss_args,
        config.aggregation,
        config.constant_tokens,
        config.kl_coef if config.kl_in != "reward" else 0.0,
        config.entropy_coef,
        temperature,
        config.kl or "k3",
        correction,
        config.band,
        own_old=correction != "none" and updates == 1,
    )


def whole_loss(loss: Loss, objective: Objective, inputs: LossInputs) -> LossOutputs:
    """The loss, corrected for what sampled its tokens, with the terms that the objective adds: `kl` when there is a reference, `entropy`
    when it has a weight. Those two are of the policy itself, and are not corrected.

    Raises ValueError when the loss gives something other than `LossOutputs` with a value per token.
    """
    from .losses import KL_ESTIMATES, LossOutputs, correction_weights

    if objective.own_old:
        inputs = replace(inputs, old_logprobs=inputs.logprobs.detach())
    outputs: LossOutputs = loss.function(inputs)
    if not isinstance(outputs, LossOutputs):
        raise ValueError(f"loss {loss.id!r} must give LossOutputs, not {type(outputs).__name__}")
    for name, values in {**outputs.terms, **outputs.metrics}.items():
        if tuple(values.shape) != tuple(inputs.logprobs.shape):
            raise ValueError(
                f"loss {loss.id!r}: {name} must have one value per token, {tuple(inputs.logprobs.shape)}, not {tuple(values.shape)}"
            )
    terms, metrics = dict(outputs.terms), dict(outputs.metrics)
    if objective.correction != "none":
        log_ratio = inputs.old_logprobs - inputs.sampler_logprobs
        weights = correction_weights(objective.correction, log_ratio, inputs.trajectory, *objective.band)
        terms = {name: values * weights for name, values in terms.items()}
        metrics["correction"] = weights
    if inputs.reference_logprobs is not None and objective.kl_coef > 0:
        kl = KL_ESTIMATES[objective.kl](inputs.logprobs, inputs.reference_logprobs)
        terms["kl"], metrics["reference_kl"] = objective.kl_coef * kl, kl.detach()
    if objective.entropy_coef > 0:
        terms["entropy"] = -objective.entropy_coef * inputs.entropy
    return LossOutputs(terms, metrics)


def token_kl(kind: KL, logprobs: Float32, other_logprobs: Float32) -> Float32:
    """Each token's estimate of KL(policy || other), float32 `[N]`, of arrays: for a KL in the reward."""
    from .losses import kl_of

    return kl_of(kind, logprobs, other_logprobs)
