"""What the supervised kinds share: their table and their steps, cross-entropy through the learner's primitives. See `examples.py`, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from pydantic import Field, field_validator, model_validator

from ..batch import TokenBatch, plain_batch
from ..data.config import RowsConfig, RowsKind, SupervisedRows, readable
from ..data.supervised import SupervisedExample
from ..models.best import BestBy
from ..objectives.objective import CROSS_ENTROPY
from ..updates import PolicyLearner
from .common import NOT_FINITE, PhaseConfig, PhaseData, PhaseParts, PhaseStep, Schedule, Spent, may_skip, one_update


class SupervisedConfig(RowsConfig, PhaseConfig):
    """A phase of supervised training.

    steps: optimizer steps. batch: examples per step: conversations and documents (a document longer than `engine.max_context` tokens is cut
    into several).
    held_out: rows that are never trained on, in a file, a folder or behind a URL, whose loss is measured before the first step, every
    `held_out_every` steps and after the last. held_out_every: steps between two such measurements. patience: how many of them in a row may
    be no better than the best before the phase ends; left out, it takes all of its steps. keep_best: whether the phase ends with the
    weights of its lowest held-out loss, and not with the last ones.
    """

    kind: RowsKind
    batch: int = Field(default=32, ge=1)
    schedule: Schedule = "cosine"
    held_out: str | None = None
    held_out_every: int = Field(default=50, ge=1)
    patience: int | None = Field(default=None, ge=1)
    keep_best: bool = False

    @field_validator("held_out")
    @classmethod
    def _readable_too(cls, value: str | None) -> str | None:
        return value if value is None else readable(value, cls.prose)

    @model_validator(mode="after")
    def _never_trained_on(self) -> SupervisedConfig:
        unused = [key for key in ("held_out_every", "patience", "keep_best") if key in self.model_fields_set and self.held_out is None]
        if unused:
            raise ValueError(f"{unused[0]} has no effect without held_out; add the rows whose loss is measured, or remove it")
        if self.held_out is not None and self.held_out in self.places:
            raise ValueError("held_out is what is trained on; give rows of their own")
        return self

    @model_validator(mode="after")
    def _measured_in_time(self) -> SupervisedConfig:
        """What is held out is measured often enough for what is asked of it: what the last step shows ends no phase."""
        between = (self.steps - 1) // self.held_out_every
        how = f"held_out_every = {self.held_out_every} of {self.steps} steps"
        if self.held_out_every > self.steps and "held_out_every" in self.model_fields_set:
            raise ValueError(f"{how} is never reached; lower it, to {self.steps} for what is measured first and last anyway")
        if self.patience is not None and self.patience > between:
            raise ValueError(
                f"patience = {self.patience} has no effect: {how} give {between} measurement(s) between first and last; lower either"
            )
        if self.keep_best and not between:
            raise ValueError(f"keep_best has no effect: {how} leave only the last weights measured; lower held_out_every, or remove it")
        return self

    @property
    def supervised_rows(self) -> SupervisedRows:
        return SupervisedRows(self.name, self.kind, self, self.batch, self.steps * self.batch, self.held_out)

    @property
    def best_by(self) -> BestBy | None:
        return BestBy((HELD_OUT[1],), "its rows that are held out") if self.keep_best else None

    @property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        held_out = (self.held_out,) if self.held_out is not None else ()
        return {**self.own_rows, "held_out": held_out}


def example_batch(examples: Sequence[SupervisedExample]) -> TokenBatch:
    """The examples end to end, as the learner takes them."""
    return plain_batch([(example.token_ids, example.trainable) for example in examples])


def supervised_step(
    learner: PolicyLearner, examples: Sequence[SupervisedExample], step: int | None = None, skips: bool = False
) -> dict[str, float]:
    """One optimizer step on cross-entropy, averaged over the trainable tokens of the examples.

    step, skips: its number, and whether it may be left out, as `one_update` takes them. Returns loss, entropy (nats per token), grad_norm
    (before clipping), lr, tokens (trained), packed_tokens (computed) and seconds; or what is left of these, and updates_skipped. Raises
    ValueError when there is nothing to train on, FloatingPointError (before stepping) when loss or gradient are not finite.
    """
    return one_update(learner, example_batch(examples), CROSS_ENTROPY, step, skips)[1]


class PhaseExamples(PhaseData, Protocol):
    """The examples of a supervised phase, step after step (`data.prepared.PreparedData`)."""

    @property
    def held_out(self) -> Sequence[SupervisedExample]: ...

    def examples(self, step: int) -> Sequence[SupervisedExample]:
        """Those of a step, from 0: a pure function of it."""
        ...

    def metrics(self, step: int, examples: Sequence[SupervisedExample]) -> dict[str, float]:
        """What a step adds to the metrics, given the examples that it had."""
        ...


def supervised_steps(parts: PhaseParts, table: SupervisedConfig, data: PhaseExamples) -> Iterator[PhaseStep]:
    """The steps that are left of the phase, one at a time, until its last or until its held-out loss falls no more. That of the step with
    which a budget is spent is measured, too: the phase ends there."""
    learner, losses = parts.learner, [row[name] for row in parts.done for name in HELD_OUT if name in row]
    rows, spent = list(parts.done), Spent()
    for row in rows:
        spent.add(row)
    for step in range(len(parts.done), table.steps):
        before = {}
        if step == 0 and data.held_out:
            before[HELD_OUT[0]] = held_out_loss(learner, data.held_out, table.batch)
            losses.append(before[HELD_OUT[0]])
        examples = data.examples(step)
        metrics = supervised_step(learner, examples, step, may_skip(rows)) | data.metrics(step, examples) | before
        computed, trained = (metrics[name] / metrics["seconds"] for name in ("packed_tokens", "tokens"))
        loss = f"loss {metrics['loss']:.3f}" if "updates_skipped" not in metrics else NOT_FINITE
        line = f"{loss}  {computed:,.0f} packed tokens/s, {trained:,.0f} trained"
        spent.add(metrics)
        last = step + 1 == table.steps or bool(spent.reached(table))  # whoever takes the steps takes no other then
        if data.held_out and (last or (step + 1) % table.held_out_every == 0):
            metrics[HELD_OUT[1]] = held_out_loss(learner, data.held_out, table.batch)
            losses.append(metrics[HELD_OUT[1]])
        if losses:
            line += f", held-out loss {losses[-1]:.3f}"
        rows.append(metrics)
        yield PhaseStep(step + 1, metrics, line, "patience" if out_of_patience(losses, table.patience) else "")


HELD_OUT = ("held_out_loss_before", "held_out_loss")
"""Metrics: the loss on held-out rows before a phase's first step, and after a step."""


def held_out_loss(learner: PolicyLearner, examples: Sequence[SupervisedExample], batch: int) -> float:
    """Cross-entropy of the trainable tokens of held-out examples, in nats per token, `batch` of them at a time, without an update."""
    loss = tokens = 0.0
    for first in range(0, len(examples), batch):
        part = example_batch(examples[first : first + batch])
        loss += learner.score(part).terms["loss"] * part.tokens
        tokens += part.tokens
    return loss / tokens


def out_of_patience(losses: Sequence[float], patience: int | None) -> bool:
    """Whether none of the last `patience` losses is below every one before them."""
    return patience is not None and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])
