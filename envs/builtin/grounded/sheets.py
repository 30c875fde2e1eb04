"""Order sheets and questions about them, by plain combination; a case follows from its seed.

A question cannot be answered where the sheet lacks the order or the field ("missing"), or where two of its lines disagree about just that
("contradicting"). What merely looks like it is in answerable cases too: lines that lack other fields, and second lines for an order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["answerable", "missing", "contradicting"]
KINDS: tuple[Kind, ...] = ("answerable", "missing", "contradicting")

TRAIN_SEEDS = 1_000_000_000
"""Cases of seeds below this are for training; those from here on are held out."""

NOT_KNOWN = "I do not know"

ORDERS = tuple("ABCDEFGHJKLMNPRSTUVW")
VALUES: dict[str, tuple[str, ...]] = {
    "part": ("gears", "shafts", "valves", "bolts", "pumps", "springs", "hoses", "seals", "rings", "plates"),
    "pieces": tuple(str(number) for number in range(10, 100, 10)),
    "for": ("Miller", "Sato", "Weber", "Garcia", "Novak", "Rossi", "Dubois", "Singh", "Larsen", "Okafor"),
    "due": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "paint": ("red", "blue", "green", "grey", "black", "white", "yellow"),
    "machine": ("lathe", "mill", "press", "saw", "grinder", "welder", "laser"),
}
"""What an order may have, field by field."""
QUESTIONS: dict[str, tuple[str, ...]] = {
    "part": ("Which part is order {}?", "What does order {} ask for?"),
    "pieces": ("How many pieces is order {}?", "How large is order {}?"),
    "for": ("Who is order {} for?", "Who gets order {}?"),
    "due": ("When is order {} due?", "On what day is order {} due?"),
    "paint": ("What colour is order {}?", "How is order {} painted?"),
    "machine": ("Which machine makes order {}?", "Where is order {} made?"),
}

LEVELS: tuple[tuple[int, int], ...] = ((1, 1), (2, 4))
"""How many orders a sheet has, at least and at most, by level."""
FIELDS = (3, 5)
"""How many fields the first line for an order has, at least and at most: so many that a sheet hardly comes twice."""
SECOND_LINE = 0.5
"""Chance of a second line for an order, where nothing contradicts what is asked."""


@dataclass(frozen=True, slots=True)
class SheetLine:
    """One line of a sheet. Example: `SheetLine("K", {"part": "gears", "due": "Friday"})` reads `order K: part=gears due=Friday`."""

    order: str
    fields: dict[str, str]

    @property
    def text(self) -> str:
        return f"order {self.order}: {' '.join(f'{name}={value}' for name, value in self.fields.items())}"


@dataclass(frozen=True, slots=True)
class Case:
    """A sheet and a question about it. wording: which of the ways to ask it is."""

    lines: tuple[SheetLine, ...]
    order: str
    field: str
    wording: int

    @property
    def kind(self) -> Kind:
        return kind_of(self.lines, self.order, self.field)

    @property
    def entries(self) -> tuple[str, ...]:
        """What the sheet says of what is asked, a value for each line that says something."""
        return entries(self.lines, self.order, self.field)

    @property
    def answer(self) -> str | None:
        """The value, None where the sheet gives none."""
        return self.entries[0] if self.kind == "answerable" else None

    @property
    def text(self) -> str:
        """What is asked, the sheet first."""
        return f"{sheet_text(self.lines)}\n{question(self.order, self.field, self.wording)}"


def entries(lines: tuple[SheetLine, ...], order: str, field: str) -> tuple[str, ...]:
    return tuple(line.fields[field] for line in lines if line.order == order and field in line.fields)


def kind_of(lines: tuple[SheetLine, ...], order: str, field: str) -> Kind:
    """What a sheet makes of a question."""
    said = set(entries(lines, order, field))
    return "answerable" if len(said) == 1 else "contradicting" if said else "missing"


def sheet_text(lines: tuple[SheetLine, ...]) -> str:
    return "\n".join(line.text for line in lines)


def question(order: str, field: str, wording: int) -> str:
    return QUESTIONS[field][wording].format(order)


def make_case(seed: int, level: int = 0, unanswerable: float = 0.5) -> Case:
    """The case of this seed: one that cannot be answered with probability `unanswerable`, as often missing as contradicting.

    level: 0 for sheets of one order, which lack at most what is asked of it; 1 for sheets of two to four, which may lack the order.
    """
    rng = np.random.default_rng([seed, level, 0x6C0D])
    kind: Kind = "answerable" if rng.random() >= unanswerable else "missing" if rng.random() < 0.5 else "contradicting"
    low, high = LEVELS[level]
    order, absent, *others = (ORDERS[i] for i in rng.permutation(len(ORDERS))[: 1 + int(rng.integers(low, high + 1))])
    field = pick(rng, tuple(VALUES))
    unlisted = kind == "missing" and level > 0 and rng.random() < 0.5
    lines = [SheetLine(name, _fields(rng)) for name in (absent if unlisted else order, *others)]
    if kind == "missing" and not unlisted:
        lines[0] = SheetLine(order, _fields(rng, without=field))
    elif kind != "missing":
        lines[0] = SheetLine(order, {field: pick(rng, VALUES[field]), **lines[0].fields})
    if kind == "contradicting":
        said = lines[0].fields[field]
        lines.append(SheetLine(order, {field: pick(rng, tuple(value for value in VALUES[field] if value != said))}))
    elif rng.random() < SECOND_LINE:
        lines.append(_second(rng, lines, field))
    shuffled = tuple(SheetLine(lines[i].order, _shuffled(rng, lines[i].fields)) for i in rng.permutation(len(lines)))
    case = Case(shuffled, order, field, int(rng.integers(len(QUESTIONS[field]))))
    assert case.kind == kind
    return case


def _fields(rng: np.random.Generator, without: str = "") -> dict[str, str]:
    """What the first line for an order says; one field is left out of it."""
    names = [name for name in VALUES if name != without]
    chosen = rng.permutation(len(names))[: int(rng.integers(FIELDS[0], FIELDS[1] + 1))]
    return {names[i]: pick(rng, VALUES[names[i]]) for i in chosen}


def _second(rng: np.random.Generator, lines: list[SheetLine], asked: str) -> SheetLine:
    """A second line for one of the orders, of one field: what is asked only as it stands already."""
    line = lines[int(rng.integers(len(lines)))]
    name = pick(rng, tuple(name for name in VALUES if name != asked or name in line.fields))
    return SheetLine(line.order, {name: line.fields[name] if name == asked else pick(rng, VALUES[name])})


def _shuffled(rng: np.random.Generator, fields: dict[str, str]) -> dict[str, str]:
    names = tuple(fields)
    return {names[i]: fields[names[i]] for i in rng.permutation(len(names))}


def pick(rng: np.random.Generator, among: tuple[str, ...]) -> str:
    return among[int(rng.integers(len(among)))]
