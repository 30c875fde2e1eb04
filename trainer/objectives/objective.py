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
from .config import Aggregation, ObjectiveConfig
from .registry import Loss, find_loss

if TYPE_CHECKING:
    from .losses import LossInputs, LossOutputs


@dataclass(frozen=True)
class Objective:
    """What `Learner.forward_backward` minimises.

    loss: a name that `find_loss` knows, or a function of `LossInputs` (then computed as level "sequence"). temperature: what the engine
    sampled with, so that log-probabilities compare like with like. The rest is as in `ObjectiveConfig`.

    Example: `Objective("ppo_clip", {"clip_high": 0.28}, kl_coef=0.01)`, or `Objective(my_loss, aggregation="sequence")`.
    """

    loss: str | Callable[..., LossOutputs] = "ppo_clip"
    args: Mapping[str, Any] = field(default_factory=dict)
    aggregation: Aggregation | None = None
    constant_tokens: int | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    temperature: float = 1.0

    def resolved(self) -> Loss:
        """The loss, with options set. Raises ValueError when it is unknown or an option unfit."""
        return find_loss(self.loss, self.args) if isinstance(self.loss, str) else Loss(self.loss.__qualname__, self.loss)

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


def objective_of(config: ObjectiveConfig, temperature: float) -> Objective:
    """The objective that a recipe's table asks for."""
    return Objective(
        config.loss, config.loss_args, config.aggregation, config.constant_tokens, config.kl_coef, config.entropy_coef, temperature
    )


def whole_loss(loss: Loss, objective: Objective, inputs: LossInputs) -> LossOutputs:
    """The loss with the terms that the objective adds: `kl` when there is a reference, `entropy` when it has a weight.

    Raises ValueError when the loss gives something other than `LossOutputs` with a value per token.
    """
    from .losses import LossOutputs, k3

    outputs: LossOutputs = loss.function(inputs)
    if not isinstance(outputs, LossOutputs):
        raise ValueError(f"loss {loss.id!r} must give LossOutputs, not {type(outputs).__name__}")
    for name, values in {**outputs.terms, **outputs.metrics}.items():
        if tuple(values.shape) != tuple(inputs.logprobs.shape):
            raise ValueError(
                f"loss {loss.id!r}: {name} must have one value per token, {tuple(inputs.logprobs.shape)}, not {tuple(values.shape)}"
            )
    terms, metrics = dict(outputs.terms), dict(outputs.metrics)
    if inputs.reference_logprobs is not None:
        kl = k3(inputs.logprobs, inputs.reference_logprobs)
        terms["kl"], metrics["reference_kl"] = objective.kl_coef * kl, kl.detach()
    if objective.entropy_coef > 0:
        terms["entropy"] = -objective.entropy_coef * inputs.entropy
    return LossOutputs(terms, metrics)
