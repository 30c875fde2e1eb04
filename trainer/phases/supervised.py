"""Supervised phases: continued pre-training on documents, fine-tuning on conversations; cross-entropy through the learner's primitives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..batch import TokenBatch, plain_batch
from ..data.config import readable
from ..data.supervised import SupervisedExample, shuffled_batch
from ..objectives.objective import CROSS_ENTROPY
from ..updates import PolicyLearner
from .common import PhaseStep, Schedule, check_warmup


class SupervisedConfig(BaseModel):
    """A phase of supervised training.

    steps: optimizer steps. batch: examples per step: conversations, or, for cpt, documents (one longer than `engine.max_context` tokens is
    cut into several). lr: peak learning rate. warmup_steps: steps over which the rate rises to the peak. schedule: "constant", or "cosine"
    down to zero at the last step. checkpoint_every: steps between checkpoints, beside the one after the last.
    data: path of a file of rows (`{"text": …}` for cpt, `{"messages": […]}` for sft; docs/formats.md lists the forms) or, for cpt, of a
    text file with one document per paragraph. generate: instead of a file, `module:function` called as `function(seed, count, **args)`,
    giving texts (cpt) or conversations (sft). args: further arguments of that function. count: how many it makes, seen again once all
    were; left out, steps x batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Schedule = "constant"
    checkpoint_every: int = Field(default=200, ge=1)
    data: str | None = None
    generate: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:function")
    args: dict[str, Any] = {}
    count: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> SupervisedConfig:
        if (self.data is None) == (self.generate is None):
            raise ValueError('needs exactly one of data = "PATH" and generate = "module:function"')
        if self.data is not None:
            idle = [key for key in ("args", "count") if key in self.model_fields_set]
            if idle:
                raise ValueError(f"{' and '.join(idle)} has no effect on data = …; it belongs to generate = …")
        check_warmup(self)
        return self

    @property
    def updates(self) -> int:
        """Optimizer updates of one step."""
        return 1

    @property
    def examples(self) -> int:
        """How many texts or conversations to generate."""
        return self.count or self.steps * self.batch


class CPTConfig(SupervisedConfig):
    """The `[cpt]` table: continued pre-training on documents, of which every token is learned."""

    lr: float = Field(default=1e-3, gt=0, le=1)

    @field_validator("data")
    @classmethod
    def _documents(cls, value: str | None) -> str | None:
        return value if value is None else readable(value, prose=True)


class SFTConfig(SupervisedConfig):
    """The `[sft]` table: supervised fine-tuning on conversations, of which the assistant's tokens are learned."""

    lr: float = Field(default=3e-4, gt=0, le=1)

    @field_validator("data")
    @classmethod
    def _conversations(cls, value: str | None) -> str | None:
        return value if value is None else readable(value)


def example_batch(examples: Sequence[SupervisedExample]) -> TokenBatch:
    """The examples end to end, as the learner takes them."""
    return plain_batch([(example.token_ids, example.trainable) for example in examples])


def supervised_step(learner: PolicyLearner, examples: Sequence[SupervisedExample]) -> dict[str, float]:
    """One optimizer step on cross-entropy, averaged over the trainable tokens of the examples.

    Returns loss, entropy (nats per token), grad_norm (before clipping), lr, tokens (trained), packed_tokens (computed) and seconds. Raises
    ValueError when there is nothing to train on, FloatingPointError (before stepping) when loss or gradient are not finite.
    """
    batch = example_batch(examples)
    measured = learner.forward_backward(batch, CROSS_ENTROPY)
    stepped = learner.step()
    counts = {"tokens": float(batch.tokens), "packed_tokens": float(measured.packed_tokens)}
    return {**measured.means(batch), **stepped, **counts, "seconds": measured.seconds + stepped["seconds"]}


def supervised_steps(
    learner: PolicyLearner, table: SupervisedConfig, examples: Sequence[SupervisedExample], order: int, first: int = 0
) -> Iterator[PhaseStep]:
    """The phase from step `first` (0 is its beginning) to its end, a step at a time. order: the seed that examples are shuffled with."""
    for step in range(first, table.steps):
        metrics = supervised_step(learner, [examples[i] for i in shuffled_batch(len(examples), table.batch, order, step)])
        computed, trained = (metrics[name] / metrics["seconds"] for name in ("packed_tokens", "tokens"))
        line = f"loss {metrics['loss']:.3f}  {computed:,.0f} packed tokens/s, {trained:,.0f} trained"
        yield PhaseStep(step + 1, metrics, line, last=step + 1 == table.steps)
