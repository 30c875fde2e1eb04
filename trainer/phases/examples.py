"""What the supervised kinds share: what a plan says of them, and their examples, laid out before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..data.config import Making, SupervisedRows
from ..data.prepared import SourceFacts, lay_out, survey
from .common import PhaseWork, Playing
from .supervised import PhaseExamples, SupervisedConfig

SAMPLE: Final = 32
"""Examples that a generator makes to show how long they are; files are read and rendered whole."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What rows amount to. mean_tokens: of an example, as the blend has them. own: examples that are the user's. line: where they are
    from."""

    mean_tokens: float
    own: int
    line: str


def supervised_plan(table: SupervisedConfig, making: Making, playing: Playing, say: Callable[[str], None]) -> PhaseWork:
    """What the phase will do, by the length of its examples."""
    found, seen = examples_of(table.supervised_rows, making, say), table.steps * table.batch
    length = found.mean_tokens
    what = {"cpt": "documents", "midtrain": "documents and conversations"}.get(table.kind, "conversations")
    work = f"{table.steps} steps x {table.batch} {what} of about {length:.0f} tokens, lr {table.lr:g}, {found.line}"
    return PhaseWork(work, round(seen * length), examples=found.own)


def examples_of(wanted: SupervisedRows, making: Making, say: Callable[[str], None]) -> Examples:
    """What rows amount to, each read and rendered."""
    facts = survey(wanted, making, limit=SAMPLE, say=say)
    own = wanted.examples if wanted.rows.generate is not None else sum(one.examples for one in facts if not one.curated)
    return Examples(sum(float(one.share) * one.mean_tokens for one in facts), own, _blend_line(wanted, facts))


def lay_out_examples(table: SupervisedConfig, making: Making, folder: Path, say: Callable[[str], None]) -> PhaseExamples:
    """The phase's examples in `folder`."""
    return lay_out(table.supervised_rows, making, folder, say)


def _blend_line(wanted: SupervisedRows, facts: Sequence[SourceFacts]) -> str:
    """Where the examples come from, each source of a blend with its share, what it has, and what is left out of it."""
    if len(facts) == 1:
        return f"from {facts[0].origin}{_left_out(facts[0])}"
    listed = [f"{float(one.asked):.2%} {one.name} ({one.origin.partition(':')[0]}{_rows(wanted, one)}{_left_out(one)})" for one in facts]
    return f"blended by {wanted.rows.shares_of}: {', '.join(listed)}"


def _rows(wanted: SupervisedRows, one: SourceFacts) -> str:
    """How many rows there are, and how often each is seen, of a source whose rows were all read."""
    if one.curated or wanted.rows.generate is not None or not one.examples:
        return ""
    return f", {one.rows:,} rows seen {float(one.share) * wanted.samples / one.examples:.1f} times"


def _left_out(one: SourceFacts) -> str:
    return f", {one.rejected:,} unfit rows left out" if one.rejected else ""
