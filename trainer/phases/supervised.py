"""Supervised phases: continued pre-training on documents, fine-tuning on conversations; cross-entropy through the learner's primitives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..batch import TokenBatch, plain_batch
from ..data.config import BlendConfig, readable
from ..data.supervised import SupervisedExample
from ..objectives.objective import CROSS_ENTROPY
from ..updates import PolicyLearner
from .common import PhaseStep, Schedule, check_warmup


class SupervisedConfig(BaseModel):
    """A phase of supervised training.

    steps: optimizer steps. batch: examples per step: conversations, or, for cpt, documents (one longer than `engine.max_context` tokens is
    cut into several). lr: peak learning rate. warmup_steps: steps over which the rate rises to the peak. schedule: "constant", or "cosine"
    down to zero at the last step. checkpoint_every: steps between checkpoints, beside the one after the last.
    data: rows in a file, a folder of files or behind a URL: `{"text": …}` for cpt, `{"messages": […]}` for sft (docs/formats.md lists the
    forms), or, for cpt, text with one document per paragraph. own: the same where it is blended, one place or several. generate: instead,
    `module:function` called as `function(seed, count, **args)`, giving texts (cpt) or conversations (sft). args: further arguments of that
    function. count: how many it makes, seen again once all were; left out, steps x batch. max_rejects: how many rows may be unfit; they are
    left out and written to the run's `data/PHASE/rejects.jsonl` with the reason, and one more stops the run before it trains.
    blend_ratio: the share of samples that are own ones, from 0 to 1; the rest is curated (docs/blend-data.md). curated: with it, true for
    burnish's own catalog, or the id or the folder of another, whose categories then share the rest equally. blend_by: whether the shares
    of a blend are of "samples" or of "tokens" that are learned; left out, of samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Schedule = "constant"
    checkpoint_every: int = Field(default=200, ge=1)
    data: str | None = None
    own: tuple[str, ...] = ()
    generate: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:function")
    args: dict[str, Any] = {}
    count: int | None = Field(default=None, ge=1)
    max_rejects: int = Field(default=0, ge=0)
    blend_ratio: float | None = Field(default=None, ge=0, le=1)
    curated: bool | str = False
    blend_by: Literal["samples", "tokens"] | None = None
    blend: BlendConfig | None = None

    @field_validator("own", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("data")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        return value if value is None else readable(value, cls.prose)

    @field_validator("own")
    @classmethod
    def _all_readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(readable(place, cls.prose) for place in value)

    @model_validator(mode="after")
    def _one_source(self) -> SupervisedConfig:
        blended = self.blend_ratio is not None or self.blend is not None
        if [self.data is not None, bool(self.own), self.generate is not None].count(True) != 1:
            places = 'own = "PATH"' if blended else 'data = "PATH"'
            raise ValueError(f'needs exactly one of {places} and generate = "module:function"')
        if self.generate is None:
            idle = [key for key in ("args", "count") if key in self.model_fields_set]
            if idle:
                files = "own" if self.own else "data"
                raise ValueError(f"{' and '.join(idle)} has no effect on {files} = …; it belongs to generate = …")
        self._check_blend()
        check_warmup(self)
        return self

    def _check_blend(self) -> None:
        if self.blend_ratio is not None and self.blend is not None:
            raise ValueError("blend_ratio and blend say the same; remove one of them")
        if (self.blend_ratio is None) != (self.curated is False):
            lacks = "curated = true, or the name of a catalog," if self.curated is False else "blend_ratio = 0.7, or another share,"
            raise ValueError(f"needs {lacks} too: the one says how much of a blend is own rows, the other what the rest is")
        if self.curated == "":
            raise ValueError("curated must be true, or the id or the folder of a catalog")
        blended = self.blend_ratio is not None or self.blend is not None
        if self.blend_by is not None and not blended:
            raise ValueError("blend_by has no effect without a blend; add blend_ratio and curated, or remove it")
        if self.own and not blended:
            raise ValueError("own has no effect without a blend; write data = …, or add blend_ratio and curated")
        if self.data is not None and blended:
            raise ValueError("data is a phase that is not blended; write own = … beside a blend")

    prose: ClassVar[bool] = False
    """Whether plain text is data too."""

    @property
    def updates(self) -> int:
        """Optimizer updates of one step."""
        return 1

    @property
    def examples(self) -> int:
        """How many texts or conversations to generate."""
        return self.count or self.steps * self.batch

    @property
    def places(self) -> tuple[str, ...]:
        """Where the phase's own rows lie; empty when they are generated."""
        return self.own if self.data is None else (self.data,)


class CPTConfig(SupervisedConfig):
    """The `[cpt]` table: continued pre-training on documents, of which every token is learned."""

    lr: float = Field(default=1e-3, gt=0, le=1)

    prose: ClassVar[bool] = True


class SFTConfig(SupervisedConfig):
    """The `[sft]` table: supervised fine-tuning on conversations, of which the assistant's tokens are learned."""

    lr: float = Field(default=3e-4, gt=0, le=1)


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


class PhaseExamples(Protocol):
    """The examples of a phase, step after step (`data.prepared.PhaseData`)."""

    def examples(self, step: int) -> Sequence[SupervisedExample]:
        """Those of a step, from 0: a pure function of it."""
        ...

    def metrics(self, step: int, examples: Sequence[SupervisedExample]) -> dict[str, float]:
        """What a step adds to the metrics, given the examples that it had."""
        ...


def supervised_steps(learner: PolicyLearner, table: SupervisedConfig, data: PhaseExamples, first: int = 0) -> Iterator[PhaseStep]:
    """The phase from step `first` (0 is its beginning) to its end, a step at a time."""
    for step in range(first, table.steps):
        examples = data.examples(step)
        metrics = supervised_step(learner, examples) | data.metrics(step, examples)
        computed, trained = (metrics[name] / metrics["seconds"] for name in ("packed_tokens", "tokens"))
        line = f"loss {metrics['loss']:.3f}  {computed:,.0f} packed tokens/s, {trained:,.0f} trained"
        yield PhaseStep(step + 1, metrics, line, last=step + 1 == table.steps)
