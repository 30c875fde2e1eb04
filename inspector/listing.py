"""Which stored episodes a list is of, and in which order: what is wanted, as conditions of SQL and their values."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..rollout.store.episodes import text
from .index import IndexSegment

Order = Literal[
    "latest", "worst", "best", "longest", "shortest", "slowest", "earliest", "by task", "by failure", "by culprit", "newest weights",
    "oldest weights", "part lowest", "part highest",
]  # fmt: skip
_LATEST = "list_position(?, phase) DESC, step DESC, split, mode, phase, episode"
"""What every order ends in: the last phase of the list that is given first, as steps are counted anew in each. It has all of `PLACE`, so no
two episodes of a store tie, and each is on one page of a list."""
ORDERS: Mapping[Order, str] = {
    "latest": _LATEST,
    "worst": f"reward ASC NULLS LAST, {_LATEST}",
    "best": f"reward DESC NULLS LAST, {_LATEST}",
    "longest": f"sampled_tokens DESC, {_LATEST}",
    "shortest": f"sampled_tokens, {_LATEST}",
    "slowest": f"seconds DESC, {_LATEST}",
    "earliest": "list_position(?, phase), step, split, mode, phase, episode",
    "by task": f"task, {_LATEST}",
    "by failure": f"failure NULLS LAST, {_LATEST}",
    "by culprit": f"culprit NULLS LAST, {_LATEST}",
    "newest weights": f"newest_version DESC, {_LATEST}",
    "oldest weights": f"nullif(oldest_version, -1) ASC NULLS LAST, {_LATEST}",
    "part lowest": f"part ASC, {_LATEST}",
    "part highest": f"part DESC, {_LATEST}",
}
assert set(ORDERS) == set(get_args(Order))
EXACT = ("phase", "split", "mode", "task", "failure", "culprit", "truncation", "engine")
"""Columns that a list is narrowed by, each to one value."""
RANGES: Mapping[str, tuple[str, str]] = {
    "reward": ("reward >= ? AND NOT isnan(reward)", "reward <= ?"),
    "part": ("part >= ? AND NOT isnan(part)", "part <= ?"),
    "tokens": ("sampled_tokens >= ?", "sampled_tokens <= ?"),
    "version": ("newest_version >= ?", "oldest_version <= ? AND newest_version >= 0"),
}
"""What a list is narrowed by to a range: what holds from its least value on, and up to its most. NaN is more than any number, as DuckDB has
it; weights of -1 are those of an episode in which nothing was sampled."""
PLACE = ("phase", "step", "split", "mode", "episode")
"""Columns that name one episode of a store."""
GROUP = (*PLACE[:-1], "task")
"""Columns that name the attempts at one task at one moment."""
DEEPEST = 10_000
"""How far down a list can be turned."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which episodes to list. exact: column -> its value, of `EXACT`. step: of training; None for all. failed: only those that failed, or
    only those that did not. between: of `RANGES` -> (least, most), None where there is no bound; of weights, those of any token that was
    sampled. part: only episodes whose reward has it, which are listed with its value as `part`. tool: only those that called it, or had its
    answer. text: words, each of which is part of a word of the conversation, in any case, and a word of its own there if it has less than
    three Latin letters or digits; text without a word is nowhere. most: how many, from number `first` on.

    Example: `Wanted({"phase": "rft"}, step=12, order="worst")`.
    """

    exact: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None
    failed: bool | None = None
    between: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    part: str = ""
    tool: str = ""
    text: str = ""
    order: Order = "latest"
    first: int = 0
    most: int = 50


@dataclass(frozen=True, slots=True)
class ListPart:
    """Episodes in one form, of the index or of the store: a table with its values, the last of which are files, and what is asked of
    it with its values. listed: of the store, the columns of a list. count: how many that are, where it is known."""

    table: str
    given: list[Any]
    asked: list[str]
    values: list[Any]
    listed: str = ""
    segments: Sequence[IndexSegment] = ()
    count: int | None = None

    @property
    def where(self) -> str:
        return f" WHERE {' AND '.join(self.asked)}" if self.asked else ""

    def selected(self, columns: str) -> tuple[str, list[Any]]:
        return f"SELECT {columns} FROM {self.table}{self.where}", [*self.given, *self.values]

    def ordered(self, columns: str, order: str, phases: list[str], most: int, first: int) -> tuple[str, list[Any]]:
        """So many in an order, from number `first` on. phases: as the run came to them."""
        question, values = self.selected(columns)
        return f"{question} ORDER BY {order} LIMIT ? OFFSET ?", [*values, phases, most, first]


def of_part(order: Order, ranges: Container[str]) -> bool:
    """Whether a list of an order and ranges is of a part of the reward."""
    return "part" in ranges or order in ("part lowest", "part highest")


def conditions(wanted: Wanted) -> tuple[list[str], list[Any]]:
    """What both the index and the store are asked for, and the values of its question marks."""
    asked, values = list[str](), list[Any]()
    for name, value in wanted.exact.items():
        assert name in EXACT, f"no column to choose by: {name}"
        asked.append(f"{name} = ?")
        values.append(text(value))
    if wanted.step is not None:
        asked.append("step = ?")
        values.append(wanted.step)
    if wanted.failed is not None:
        asked.append(f"failure IS {'NOT ' if wanted.failed else ''}NULL")
    if wanted.tool:
        asked.append("list_contains(called, ?)")
        values.append(text(json.dumps(wanted.tool, ensure_ascii=False)[1:-1]))
    if wanted.part:
        asked.append("part IS NOT NULL")
    for name, bounds in wanted.between.items():
        for condition, bound in zip(RANGES[name], bounds, strict=True):
            if bound is not None:
                asked.append(condition)
                values.append(bound)
    return asked, values


@dataclass(frozen=True, slots=True)
class Hits:
    """Episodes of an index. bits: one for each episode of all its segments, one after another. offsets: where the bits of a segment
    begin, by its number less `lowest`. count: how many are set."""

    bits: bytes
    offsets: list[int]
    lowest: int
    count: int

    @classmethod
    def of(cls, held: npt.NDArray[np.bool_], segments: Sequence[IndexSegment]) -> Hits:
        """held: of the episodes of all segments, (episodes,)."""
        numbers = [segment.number for segment in segments]
        begins = dict(zip(numbers, accumulate((segment.episodes for segment in segments), initial=0), strict=False))
        offsets = [begins.get(number, held.size) for number in range(min(numbers), max(numbers) + 1)]
        return cls(np.packbits(held).tobytes(), offsets, min(numbers), int(held.sum()))
