"""Preference optimisation: pairs of answers of which one is better, against the policy as it was when the phase began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from ..batch import TokenBatch, plain_batch
from ..data.config import Making, readable
from ..data.pairs import Pair, PairData, lay_out, survey_pairs
from ..objectives.objective import Objective
from ..updates import PolicyLearner, finite
from .common import NOT_FINITE, PhaseConfig, PhaseKind, PhaseParts, PhaseStep, PhaseWork, Playing, Schedule, may_skip, one_update


class DPOConfig(PhaseConfig):
    """The `[dpo]` table: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on pairs of answers.

    steps: optimizer steps. batch: pairs per step. data: rows `{"prompt": …, "chosen": …, "rejected": …}` in a file, a folder of files or
    behind a URL (docs/formats.md). from_run: the folder of an earlier run instead, whose stored rollouts of training give the pairs: of the
    attempts at one task, the best beside the worst (docs/phases.md). min_gap: by how much the better of them must have earned more; 0 asks
    for any difference. pairs_per_group: how many pairs one task gives at most: best and worst, second best and second worst, and so on.
    beta: how strongly the policy is held to what it was when the phase began: the larger, the less it
    moves. max_rejects: how many rows may be unfit; they are left out and written to the run's `data/PHASE/rejects.jsonl` with the reason,
    and one more stops the run before it trains.
    """

    kind: Literal["dpo"] = "dpo"
    lr: float = Field(default=5e-6, gt=0, le=1)
    schedule: Schedule = "cosine"
    batch: int = Field(default=16, ge=1)
    data: str | None = Field(default=None, min_length=1, description="the path of a file of preference pairs")
    from_run: str | None = Field(default=None, min_length=1, description="the folder of a run")
    min_gap: float = Field(default=0.0, ge=0)
    pairs_per_group: int = Field(default=1, ge=1)
    beta: float = Field(default=0.1, gt=0)
    max_rejects: int = Field(default=0, ge=0)

    @field_validator("data")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        return value if value is None else readable(value)

    @model_validator(mode="after")
    def _one_source(self) -> DPOConfig:
        if (self.data is None) == (self.from_run is None):
            raise ValueError("needs exactly one of data (a file of preference pairs) and from_run (a run whose rollouts give them)")
        for key in ("min_gap", "pairs_per_group"):
            if self.from_run is None and key in self.model_fields_set:
                raise ValueError(f"{key} has no effect without from_run: the pairs of data are what they are; remove it")
        return self

    @property
    def source(self) -> str:
        """Where the pairs come from."""
        source = self.data or self.from_run
        assert source is not None
        return source

    @property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        return {"data": (self.data,)} if self.data is not None else {"from_run": (self.source,)}


def pair_batch(pairs: Sequence[Pair]) -> TokenBatch:
    """The pairs as the loss `burnish/dpo-v1` takes them: a group of two sequences each, with advantage 1 where tokens of the better answer
    are trained and -1 where those of the worse are."""
    sequences = [(example.token_ids, example.trainable) for pair in pairs for example in pair]
    batch = plain_batch(sequences)
    signs = np.where(np.arange(len(sequences)) % 2 == 0, np.float32(1), np.float32(-1))
    advantages = np.where(batch.mask, signs[batch.sequence], np.float32(0))
    return replace(batch, advantages=advantages, group=np.arange(len(sequences), dtype=np.int32) // 2)


def dpo_step(learner: PolicyLearner, pairs: Sequence[Pair], beta: float, step: int | None = None, skips: bool = False) -> dict[str, float]:
    """One optimizer step on pairs.

    step, skips: as `one_update` takes them.

    Returns loss; margin, the mean over pairs of `beta` times how much more the better answer gained on the reference than the worse, and
    preferred, the share of pairs where it gained more, both before the step; and what `supervised_step` returns beside these.
    """
    batch = pair_batch(pairs)
    measured, row = one_update(learner, batch, Objective("dpo", {"beta": beta}), step, skips)
    first = [int(np.flatnonzero(batch.mask[start:])[0]) + int(start) for start in batch.offsets[:-1:2]]
    of_pairs = {name: float(measured.tokens[name][first].mean()) for name in ("margin", "preferred")}
    return row | finite(of_pairs)  # what is not finite is of a step that was left out


def dpo_steps(parts: PhaseParts, table: DPOConfig, data: PairData) -> Iterator[PhaseStep]:
    """The steps that are left of the phase, one at a time."""
    rows = list(parts.done)
    for step in range(len(rows), table.steps):
        metrics = dpo_step(parts.learner, data.pairs(step), table.beta, step, may_skip(rows))
        line = NOT_FINITE
        if "updates_skipped" not in metrics:
            line = f"loss {metrics['loss']:.3f}  preferred {metrics['preferred']:.0%}  margin {metrics['margin']:.3f}"
        rows.append(metrics)
        yield PhaseStep(step + 1, metrics, line)


def dpo_plan(table: DPOConfig, making: Making, playing: Playing, say: Callable[[str], None]) -> PhaseWork:
    """What the phase will do, by the length of its pairs."""
    facts = survey_pairs(table, making, say=say)
    length = facts.tokens / facts.pairs
    left_out = f", {facts.rejected:,} unfit rows left out" if facts.rejected else ""
    left_out += f", {facts.without:,} groups of attempts without a pair" if facts.without else ""
    size = f"{table.steps} steps x {table.batch} pairs of about {length:.0f} tokens"
    work = f"{size}, lr {table.lr:g}, beta {table.beta:g}, from {table.source}, {facts.pairs:,} pairs{left_out}"
    return PhaseWork(work, round(table.steps * table.batch * length), flops=10, examples=facts.pairs)


DPO = PhaseKind("dpo", DPOConfig, "post-training", dpo_plan, lay_out, dpo_steps)
