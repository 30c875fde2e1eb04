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


def credit(
    groups: tuple[EpisodeGroup, ...],
    advantage: Callable[[GroupBatch], Any],
    objective: ObjectiveConfig,
    phase: UpdatedPhase,
    score: Callable[..., Measured],
) -> tuple[TokenBatch, Measured | None, Float32 | None]:
    """The batch with advantages and the old policy's log-probabilities; what the learner gave its tokens, where it was asked; and each
    token's KL estimate, float32 `[N]`, where the reward pays for it.

    score: `PolicyLearner.score` at the temperature that was sampled with.
    """
    credited = GroupBatch(groups)
    scored = score(credited.tokens) if phase.updates > 1 else None
    old, kl = credited.tokens.old_logprobs if scored is None else scored.logprobs, None
    if objective.kl_in == "reward":
        kl = token_kl(objective.kl or "k3", old, score(credited.tokens, reference=True).logprobs)
        credited = GroupBatch(groups, np.float32(-objective.kl_coef) * kl)
    batch = credited.train(advantage(credited))
    return replace(batch, old_logprobs=old), scored, kl


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
