"""Which kind of phase is a poor idea on a model of which stage: what the plan says of it, and the table of docs/models.md."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..models.manifest import STAGES, Stage
from .common import Kind

FEW: Final = 10_000
"""Examples that an early stage wants of the phases that teach it to talk, at least."""
Remedy = Literal["blended", "sft follows"]
"""What a recipe does against a doubt: the phase's rows are blended with curated ones; a later phase is of kind sft."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A phase of one of `kinds` on a model in one of `stages`. few: counts only with fewer than `FEW` examples. why: what will happen.
    remedies: any of these is what `why` asks for."""

    stages: frozenset[Stage]
    kinds: frozenset[Kind]
    why: str
    few: bool = False
    remedies: frozenset[Remedy] = frozenset()


TAUGHT: Final = frozenset[Stage]({"sft", "post-training", "rft"})
BASE: Final = frozenset[Stage]({"pretraining-full", "mid-training"})
BARELY: Final = frozenset[Stage]({"none", "pretraining-partial"})

TRANSITIONS: Final = (
    Transition(BARELY, frozenset({"dpo", "rft"}), "it has no answers yet that could be told apart"),
    Transition(BASE, frozenset({"dpo", "rft"}), "its chat template was never taught; put sft first"),
    Transition(BARELY | BASE, frozenset({"sft"}), "few conversations for a model that was taught none: it learns the form", few=True),
    Transition(frozenset({"none"}), frozenset({"cpt", "midtrain"}), "few documents for random weights: it learns them by heart", few=True),
    Transition(
        TAUGHT,
        frozenset({"cpt"}),
        "documents alone make it forget how to answer; use midtrain, or let sft follow",
        remedies=frozenset({"blended", "sft follows"}),
    ),
    Transition(
        TAUGHT - {"sft"},
        frozenset({"sft"}),
        "imitation undoes what preferences or rewards taught; blend, or prefer rft",
        remedies=frozenset({"blended"}),
    ),
)


def doubts(stage: Stage, kind: Kind, examples: int | None = None, done: Collection[Remedy] = ()) -> Iterator[str]:
    """What is doubtful about a phase on a model. examples: how many it has, None where it makes them as it goes. done: by the recipe."""
    for one in TRANSITIONS:
        enough = one.few and (examples is None or examples >= FEW)
        if stage in one.stages and kind in one.kinds and not enough and one.remedies.isdisjoint(done):
            yield one.why


def standing(stages: Sequence[Stage]) -> Stage:
    """The stage that counts of those that a model went through, in order: what it was last taught of answering, where it was, since
    documents that come after make it no base model.

    Example: `standing(["post-training", "mid-training"]) == "post-training"`.
    """
    return next((stage for stage in reversed(stages) if stage in TAUGHT), stages[-1])


def transition_table() -> str:
    """The Markdown table of docs/models.md: a row per stage, a column per kind, the doubt of each or nothing."""
    from .registry import KINDS

    head = ["stage", *(f"`{kind}`" for kind in KINDS)]
    rows = [[f"`{stage}`", *("; ".join(_said(stage, kind)) or "good" for kind in KINDS)] for stage in STAGES]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _said(stage: Stage, kind: Kind) -> Iterator[str]:
    for one in TRANSITIONS:
        if stage in one.stages and kind in one.kinds:
            yield f"{one.why} (with under {FEW:,})" if one.few else one.why
