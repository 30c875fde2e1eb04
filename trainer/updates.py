"""The optimizer updates of one policy step: credit for the step's groups, how the batch is split, and what the learner is asked for.

With one update, ratios compare with what the engine sampled with, and the learner goes over the tokens once. With several, the learner
scores the tokens before the first: that is the old policy of all of them. Nothing here knows of engines: it may run beside sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..envs.types import EpisodeGroup, Float32
from ..rollout.weights import check_learner
from .batch import GroupBatch, Int64, TokenBatch, alike
from .demonstrations import Demonstrations
from .learner.config import CriticConfig
from .objectives.advantages import beyond_expected
from .objectives.config import ObjectiveConfig
from .objectives.measures import Measured, joined, mismatch
from .objectives.objective import Objective, token_kl


class PolicyLearner(Protocol):
    """The primitives of `trainer.learner.Learner`."""

    @property
    def version(self) -> int: ...
    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured: ...
    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured: ...
    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]: ...
    def discard(self) -> None: ...
    def snapshot(self) -> Any: ...


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


@dataclass(frozen=True)
class Learned:
    """What a step's updates came to. metrics: without a prefix. trained: numbers of the groups that an update was made on. skipped: updates
    that were left out because one was not finite; updates: those that were made. sequences: that all of them went over."""

    batch: TokenBatch
    measured: Measured
    metrics: Mapping[str, float]
    trained: frozenset[int]
    updates: int
    skipped: int
    sequences: int = 0


@dataclass(frozen=True)
class Updates:
    """How a step's groups become updates. asked: the objective as the recipe has it, its numbers written out; objective: the same as the
    learner takes it. temperature: that was sampled with. demonstrations: what is learned beside the episodes, if anything."""

    advantage: Callable[[GroupBatch], Any]
    asked: ObjectiveConfig
    objective: Objective
    phase: UpdatedPhase
    temperature: float
    demonstrations: Demonstrations | None = None

    def learn(
        self,
        learner: PolicyLearner,
        groups: tuple[EpisodeGroup, ...],
        step: int,
        judge: Callable[[TokenBatch, Measured], None],
        may_skip: bool,
        sequences: int = 0,
    ) -> Learned:
        """The optimizer updates of one step. step: its number in the phase, which decides the shuffling, and the place of its updates in
        the schedule of the learning rate. judge: raises when engines are too far from the learner, before anything moves. may_skip: whether
        an update that is not finite is left out; it raises FloatingPointError otherwise. sequences: that the phase has gone over before.
        """
        phase, version = self.phase, learner.version
        try:
            batch, scored, kl = credit(groups, self.advantage, self.asked, phase, partial(_finite, learner, temperature=self.temperature))
        except LearnerNotFinite:
            if not may_skip:
                raise
            return _unscored(groups, phase)
        if scored is not None:
            judge(batch, scored)
        passes, stepped, trained = list[tuple[Int64, Measured]](), list[dict[str, float]](), set[int]()
        left, skipped, gone_over = parts(batch, phase, step), 0, 0
        shown = None if self.demonstrations is None else self.demonstrations.begun(sequences)
        for number, (part, at) in enumerate(left, start=step * phase.updates):
            found = learner.forward_backward(part, self.objective)
            passes.append((at, found))
            gone_over += len(part.lengths)
            try:
                ours = found.logprobs[part.mask]
                if scored is None and np.isfinite(ours).all():
                    judge(batch, found)
                if shown is not None:
                    shown.beside(learner, len(part.lengths))
                check_learner(ours, learner.version)
                stepped.append(learner.step(share(len(groups), phase), number))
            except FloatingPointError:
                learner.discard()
                if not may_skip:
                    raise
                skipped = 1 + sum(1 for _ in left)  # the rest of the step is left out with it
                break
            except BaseException:
                learner.discard()  # nothing of this batch may reach a later step
                raise
            trained |= set(part.group.tolist())
        measured = passes[0][1] if scored is None else joined(batch, scored, passes)
        measured = measured if kl is None else replace(measured, tokens={**measured.tokens, "reference_kl": kl})
        metrics = {**measured.means(batch), **mismatch(batch, measured.logprobs, version), **expectations(batch)}
        metrics |= {"tokens": float(batch.tokens), "packed_tokens": float(measured.packed_tokens), "updates": float(len(stepped))}
        metrics |= {} if shown is None else shown.metrics
        if skipped:  # what was not finite is why, and has no place in a row of numbers
            metrics = finite(metrics) | {"updates_skipped": float(skipped)}
        if stepped:
            metrics |= {name: float(np.mean([row[name] for row in stepped])) for name in stepped[-1]}
            metrics["seconds"] = measured.seconds + sum(row["seconds"] for row in stepped)
            metrics["seconds"] += 0.0 if shown is None else shown.seconds
        return Learned(batch, measured, metrics, frozenset(trained), len(stepped), skipped, gone_over)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that are finite: `finite({"loss": nan, "tokens": 8.0})` is `{"tokens": 8.0}`."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


class LearnerNotFinite(FloatingPointError):
    """The learner scored tokens, and a log-probability or a critic's value is not finite."""


def _finite(learner: PolicyLearner, batch: TokenBatch, **asked: Any) -> Measured:
    """`PolicyLearner.score`. Raises LearnerNotFinite."""
    found = learner.score(batch, **asked)
    for values in (found.logprobs, *found.tokens.values()):
        try:
            check_learner(values[batch.mask], learner.version)
        except FloatingPointError as error:
            raise LearnerNotFinite(str(error)) from None
    return found


def _unscored(groups: tuple[EpisodeGroup, ...], phase: UpdatedPhase) -> Learned:
    """A step whose updates are all left out, since what the learner gave its tokens before the first was not finite."""
    batch = GroupBatch(groups).tokens
    nothing = np.full(len(batch.mask), np.nan, np.float32)
    metrics = {"tokens": float(batch.tokens), "updates": 0.0, "updates_skipped": float(phase.updates)}
    return Learned(batch, Measured(nothing, nothing), metrics, frozenset(), 0, phase.updates)


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
    explained = {} if alike(returns) else {"value_explained": 1.0 - float((returns - values).var()) / float(returns.var())}
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
