"""What the supervised kinds share: their table and their steps, cross-entropy through the learner's primitives. See `examples.py`, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from ..batch import TokenBatch, plain_batch
from ..data.config import BlendConfig, readable
from ..data.supervised import SupervisedExample
from ..objectives.objective import CROSS_ENTROPY
from ..updates import PolicyLearner
from .common import PhaseConfig, PhaseData, PhaseParts, PhaseStep, Schedule


class SupervisedConfig(PhaseConfig):
    """A phase of supervised training.

    steps: optimizer steps. batch: examples per step: conversations and documents (a document longer than `engine.max_context` tokens is cut
    into several).
    data: rows in a file, a folder of files or behind a URL: `{"text": …}` for cpt, `{"messages": […]}` for sft, both for midtrain
    (docs/formats.md lists the forms), or, where documents are read, text with one per paragraph. own: the same where it is blended, one
    place or several. generate: instead, `module:function` called as `function(seed, count, **args)`, giving texts or conversations. args:
    further arguments of that
    function. count: how many it makes, seen again once all were; left out, steps x batch. max_rejects: how many rows may be unfit; they are
    left out and written to the run's `data/PHASE/rejects.jsonl` with the reason, and one more stops the run before it trains.
    blend_ratio: the share of samples that are own ones, from 0 to 1; the rest is curated (docs/blend-data.md). curated: with it, true for
    burnish's own catalog, or the id or the folder of another, whose categories then share the rest equally. blend_by: whether the shares
    of a blend are of "samples" or of "tokens" that are learned; left out, of samples.
    held_out: rows that are never trained on, in a file, a folder or behind a URL, whose loss is measured before the first step, every
    `held_out_every` steps and after the last. held_out_every: steps between two such measurements. patience: how many of them in a row may
    be no better than the best before the phase ends; left out, it takes all of its steps.
    """

    batch: int = Field(default=32, ge=1)
    schedule: Schedule = "cosine"
    data: str | None = None
    own: tuple[str, ...] = ()
    generate: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:function")
    args: dict[str, Any] = Field(default={})
    count: int | None = Field(default=None, ge=1)
    max_rejects: int = Field(default=0, ge=0)
    blend_ratio: float | None = Field(default=None, ge=0, le=1)
    curated: bool | str = False
    blend_by: Literal["samples", "tokens"] | None = None
    blend: BlendConfig | None = None
    held_out: str | None = None
    held_out_every: int = Field(default=50, ge=1)
    patience: int | None = Field(default=None, ge=1)

    @field_validator("own", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("data", "held_out")
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
        unused = [key for key in ("held_out_every", "patience") if key in self.model_fields_set and self.held_out is None]
        if unused:
            raise ValueError(f"{unused[0]} has no effect without held_out; add the rows whose loss is measured, or remove it")
        if self.held_out is not None and self.held_out in self.places:
            raise ValueError("held_out is what is trained on; give rows of their own")
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
    def examples(self) -> int:
        """How many texts or conversations to generate."""
        return self.count or self.steps * self.batch

    @property
    def places(self) -> tuple[str, ...]:
        """Where the phase's own rows lie; empty when they are generated."""
        return self.own if self.data is None else (self.data,)

    @property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        held_out = (self.held_out,) if self.held_out is not None else ()
        return {"data" if self.data is not None else "own": self.places, "held_out": held_out}


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


class PhaseExamples(PhaseData, Protocol):
    """The examples of a supervised phase, step after step (`data.prepared.PhaseData`)."""

    @property
    def held_out(self) -> Sequence[SupervisedExample]: ...

    def examples(self, step: int) -> Sequence[SupervisedExample]:
        """Those of a step, from 0: a pure function of it."""
        ...

    def metrics(self, step: int, examples: Sequence[SupervisedExample]) -> dict[str, float]:
        """What a step adds to the metrics, given the examples that it had."""
        ...


def supervised_steps(parts: PhaseParts, table: SupervisedConfig, data: PhaseExamples) -> Iterator[PhaseStep]:
    """The steps that are left of the phase, one at a time, until its last or until its held-out loss falls no more."""
    learner, losses = parts.learner, [row[name] for row in parts.done for name in HELD_OUT if name in row]
    for step in range(len(parts.done), table.steps):
        before = {}
        if step == 0 and data.held_out:
            before[HELD_OUT[0]] = held_out_loss(learner, data.held_out, table.batch)
            losses.append(before[HELD_OUT[0]])
        examples = data.examples(step)
        metrics = supervised_step(learner, examples) | data.metrics(step, examples) | before
        computed, trained = (metrics[name] / metrics["seconds"] for name in ("packed_tokens", "tokens"))
        line = f"loss {metrics['loss']:.3f}  {computed:,.0f} packed tokens/s, {trained:,.0f} trained"
        if data.held_out and ((step + 1) % table.held_out_every == 0 or step + 1 == table.steps):
            metrics[HELD_OUT[1]] = held_out_loss(learner, data.held_out, table.batch)
            losses.append(metrics[HELD_OUT[1]])
        if losses:
            line += f", held-out loss {losses[-1]:.3f}"
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
