"""Preference optimisation: pairs of answers of which one is better, against the policy as it was when the phase began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from ..batch import TokenBatch, plain_batch
from ..data.blend import shares_beside
from ..data.config import OWN, BlendedPairs, Making, PairsConfig
from ..data.pairs import Pair, PairData, PairFacts, PairSource, lay_out, survey_pairs
from ..objectives.objective import Objective
from ..updates import PolicyLearner, finite
from .common import NOT_FINITE, PhaseConfig, PhaseKind, PhaseParts, PhaseStep, PhaseWork, Playing, Schedule, may_skip, one_update


class DPOConfig(PairsConfig, PhaseConfig):
    """The `[dpo]` table: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on pairs of answers.

    steps: optimizer steps. batch: pairs per step. beta: how strongly the policy is held to what it was when the phase began: the larger,
    the less it moves. max_rejects: how many rows may be unfit; they are left out and written to the run's `data/PHASE/rejects.jsonl` with
    the reason, and one more stops the run before it trains.
    """

    kind: Literal["dpo"] = "dpo"
    lr: float = Field(default=5e-6, gt=0, le=1)
    schedule: Schedule = "cosine"
    batch: int = Field(default=16, ge=1)
    beta: float = Field(default=0.1, gt=0)
    max_rejects: int = Field(default=0, ge=0)
    blend: tuple[BlendedPairs, ...] = ()

    @field_validator("blend", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("blend")
    @classmethod
    def _blendable(cls, value: tuple[BlendedPairs, ...]) -> tuple[BlendedPairs, ...]:
        _shares(value)
        return value

    @property
    def sources(self) -> tuple[PairSource, ...]:
        """Where the pairs come from, the table's own first, each with its share."""
        rows: dict[str, PairsConfig] = {OWN: self, **{one.name: one for one in self.blend}}
        return tuple(PairSource(name, share, rows[name]) for name, share in _shares(self.blend).items())

    @property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        own = {"data": self.data, "from_run": self.from_run}
        others = {f"blend.{i}.{key}": getattr(one, key) for i, one in enumerate(self.blend) for key in own}
        return {key: (place,) for key, place in (own | others).items() if place is not None}


def _shares(blended: Sequence[BlendedPairs]) -> dict[str, Fraction]:
    return shares_beside(OWN, [(one.name, one.percent) for one in blended], "sources of pairs")


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
        pairs = data.pairs(step)
        metrics = dpo_step(parts.learner, pairs, table.beta, step, may_skip(rows)) | data.metrics(step, pairs)
        line = NOT_FINITE
        if "updates_skipped" not in metrics:
            line = f"loss {metrics['loss']:.3f}  preferred {metrics['preferred']:.0%}  margin {metrics['margin']:.3f}"
        rows.append(metrics)
        yield PhaseStep(step + 1, metrics, line)


def dpo_plan(table: DPOConfig, making: Making, playing: Playing, say: Callable[[str], None]) -> PhaseWork:
    """What the phase will do, by the length of its pairs."""
    facts = survey_pairs(table, making, say=say)
    length = sum(float(one.share) * one.tokens / max(1, one.pairs) for one in facts)
    blended = len(facts) > 1
    listed = ", ".join(f"{f'{float(one.share):.2%} {one.name} ' if blended else ''}from {_described(one)}" for one in facts)
    size = f"{table.steps} steps x {table.batch} pairs of about {length:.0f} tokens"
    work = f"{size}, lr {table.lr:g}, beta {table.beta:g}, {'blended: ' if blended else ''}{listed}"
    return PhaseWork(work, round(table.steps * table.batch * length), flops=10, examples=sum(one.pairs for one in facts if one.share))


def _described(one: PairFacts) -> str:
    left_out = f", {one.rejected:,} unfit rows left out" if one.rejected else ""
    left_out += f", {one.without:,} groups of attempts without a pair" if one.without else ""
    return f"{one.source}, {one.pairs:,} pairs{left_out}"


DPO = PhaseKind("dpo", DPOConfig, "post-training", dpo_plan, lay_out, dpo_steps)
