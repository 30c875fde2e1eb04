"""What the optimizer updates of one policy step train on: credit for the step's groups, and how the batch is split.

With one update, ratios compare with what the engine sampled with, and the learner goes over the tokens once. With several, the learner
scores the tokens before the first: that is the old policy of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..envs.types import EpisodeGroup, Float32
from .batch import GroupBatch, Int64, TokenBatch
from .learner.config import CriticConfig
from .objectives.advantages import beyond_expected
from .objectives.config import ObjectiveConfig
from .objectives.measures import Measured
from .objectives.objective import token_kl


class UpdatedPhase(Protocol):
    """What updates read of a phase's table. updates: minibatches x epochs."""

    @property
    def groups_per_step(self) -> int: ...
    @property
    def minibatches(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def updates(self) -> int: ...
    @property
    def critic(self) -> CriticConfig | None: ...


def credit(
    groups: tuple[EpisodeGroup, ...],
    advantage: Callable[[GroupBatch], Any],
    objective: ObjectiveConfig,
    phase: UpdatedPhase,
    score: Callable[..., Measured],
) -> tuple[TokenBatch, Measured | None, Float32 | None]:
    """The batch with advantages and the old policy's log-probabilities; what the learner gave its tokens, where it was asked; and each
    token's KL estimate, float32 `[N]`, where the reward pays for it.

    score: `PolicyLearner.score` at the temperature that was sampled with; with a critic it gives the critic's values too.
    """
    credited = GroupBatch(groups)
    found = score(credited.tokens) if phase.updates > 1 or phase.critic is not None else None
    scored = found if phase.updates > 1 else None
    old, kl, paid = credited.tokens.old_logprobs if scored is None else scored.logprobs, None, None
    values = None if found is None or phase.critic is None else found.tokens["value"]
    if objective.kl_in == "reward":
        kl = token_kl(objective.kl or "k3", old, score(credited.tokens, reference=True).logprobs)
        paid = np.float32(-objective.kl_coef) * kl
    if values is not None or paid is not None:
        credited = GroupBatch(groups, paid, values)
    batch = replace(credited.train(advantage(credited)), old_logprobs=old)
    if values is not None and phase.critic is not None:
        returns = beyond_expected(credited, phase.critic.lam) + values
        batch = replace(batch, values=values, returns=np.where(batch.mask, returns, 0.0).astype(np.float32))
    return batch, scored, kl


def expectations(batch: TokenBatch) -> dict[str, float]:
    """How well the critic knew what would be earned, over the trained tokens: the means of its values and of the returns, and
    value_explained, the share of the returns' variance that it foresaw (1: all; 0: none; below: worse than a constant). Empty without one.
    """
    if batch.values is None or batch.returns is None:
        return {}
    values, returns = batch.values[batch.mask].astype(np.float64), batch.returns[batch.mask].astype(np.float64)
    spread = float(returns.var())
    explained = {"value_explained": 1.0 - float((returns - values).var()) / spread} if spread > 0 else {}
    return {"value": float(values.mean()), "return": float(returns.mean()), **explained}


def parts(batch: TokenBatch, phase: UpdatedPhase, step: int) -> Iterator[tuple[TokenBatch, Int64]]:
    """What each update of a step trains on, and where its tokens are in the batch. step: its number, which decides the shuffling."""
    if phase.updates == 1:
        yield batch, np.arange(len(batch.mask))
        return
    for epoch in range(phase.epochs):
        for sequences in batch.minibatches(phase.minibatches, seed=step * phase.epochs + epoch):
            yield batch.select(sequences), batch.tokens_of(sequences)


def share(kept: int, phase: UpdatedPhase) -> float:
    """What the learning rate of a step's updates is scaled by: 1 for a full step. One that kept fewer groups than it should moves that much
    less: the groups left out had nothing to say. Weights could not do that, AdamW's step is the same however small all gradients are.

    With fewer groups than minibatches, fewer updates are made, each of one group, and that makes the step smaller too.
    """
    return min(1.0, max(kept, phase.minibatches) / phase.groups_per_step)
