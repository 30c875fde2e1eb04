"""Which kind of phase is a poor idea on a model of which stage: what the plan says of it, and the table of docs/models.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..models.manifest import STAGES, Stage
from .common import Kind

FEW: Final = 10_000
"""Examples that an early stage wants of the phases that teach it to talk, at least."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A phase of one of `kinds` on a model in one of `stages`. few: counts only with fewer than `FEW` examples. why: what will happen."""

    stages: frozenset[Stage]
    kinds: frozenset[Kind]
    why: str
    few: bool = False


TAUGHT: Final = frozenset[Stage]({"sft", "post-training", "rft"})
BASE: Final = frozenset[Stage]({"pretraining-full", "mid-training"})
BARELY: Final = frozenset[Stage]({"none", "pretraining-partial"})

TRANSITIONS: Final = (
    Transition(BARELY, frozenset({"dpo", "rft"}), "it has no answers yet that could be told apart"),
    Transition(BASE, frozenset({"dpo", "rft"}), "its chat template was never taught; put sft first"),
    Transition(BARELY | BASE, frozenset({"sft"}), "few conversations for a model that was taught none: it learns the form", few=True),
    Transition(frozenset({"none"}), frozenset({"cpt", "midtrain"}), "few documents for random weights: it learns them by heart", few=True),
    Transition(TAUGHT, frozenset({"cpt"}), "documents alone make it forget how to answer; use midtrain, or let sft follow"),
    Transition(TAUGHT - {"sft"}, frozenset({"sft"}), "imitation undoes what preferences or rewards taught; blend, or prefer rft"),
)


def doubts(stage: Stage, kind: Kind, examples: int | None = None) -> Iterator[str]:
    """What is doubtful about a phase on a model. examples: how many it has, None where it makes them as it goes."""
    for one in TRANSITIONS:
        if stage in one.stages and kind in one.kinds and not (one.few and (examples is None or examples >= FEW)):
            yield one.why


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
