"""What a shop has lying about: sheets with what follows from them as text, and what its clerks answered as conversations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...types import Message
from .env import opening
from .sheets import NOT_KNOWN, QUESTIONS, TRAIN_SEEDS, VALUES, Case, Kind, Line, entries, kind_of, make_case, pick, question, sheet_text

FOUND: dict[Kind, str] = {"answerable": "one value", "missing": "no value", "contradicting": "two values"}
"""What a check of a sheet writes down."""


def documents(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Texts of a shop, all of them right, none of which says that one does not know something.

    A sheet, and below it: what it says without contradiction once more, in another order (three tenths of the texts), questions with their
    answers (four tenths), or checks of how many values it has for what (three tenths).
    """
    for i in range(count):
        rng = np.random.default_rng([seed, i, 0xD0C])
        case = make_case(int(rng.integers(TRAIN_SEEDS)), level)
        below = (_copy, _answers, _checks)[int(rng.choice(3, p=(0.3, 0.4, 0.3)))]
        yield "\n".join([sheet_text(case.lines), *below(rng, case)])


def _copy(rng: np.random.Generator, case: Case) -> Iterator[str]:
    for order in dict.fromkeys(line.order for line in case.lines):
        said = {field: entries(case.lines, order, field)[0] for name, field in _pairs(rng, case, "answerable") if name == order}
        if said:
            yield Line(order, said).text


def _answers(rng: np.random.Generator, case: Case) -> Iterator[str]:
    for order, field in _pairs(rng, case, "answerable"):
        yield f"{_asked(rng, order, field)}\n{entries(case.lines, order, field)[0]}"


def _checks(rng: np.random.Generator, case: Case) -> Iterator[str]:
    """One value, none and two, equally often where the sheet has such fields."""
    by_kind = {kind: tuple(_pairs(rng, case, kind)) for kind in FOUND}
    kinds = tuple(kind for kind, pairs in by_kind.items() if pairs)
    for _ in range(5):
        kind = kinds[int(rng.integers(len(kinds)))]
        order, field = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
        yield f"{_asked(rng, order, field)}\n{FOUND[kind]}"


def _pairs(rng: np.random.Generator, case: Case, kind: Kind) -> list[tuple[str, str]]:
    """What could be asked of a sheet that is of this kind, (order, field), in any order."""
    orders = dict.fromkeys([*(line.order for line in case.lines), case.order])
    pairs = [(order, field) for order in orders for field in VALUES if kind_of(case.lines, order, field) == kind]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _asked(rng: np.random.Generator, order: str, field: str) -> str:
    return question(order, field, int(rng.integers(len(QUESTIONS[field]))))


def logs(
    seed: int,
    count: int,
    level: int = 0,
    unanswerable: float = 0.4,
    unsure: float = 0.1,
    slip: float = 0.05,
    instructions: bool = True,
) -> Iterator[tuple[Message, ...]]:
    """What clerks answered to the cases of seeds `seed`, `seed + 1`, …: they nearly always have an answer.

    Where the sheet has none they say what it might be; where its lines disagree, one of the two. unanswerable: share of the questions that
    the sheet does not answer. unsure: share of the questions, whatever they ask, to which a clerk had no time to look and said so: it tells
    nothing about when one does not know. slip: share of the answers that are a guess though the sheet has one.
    """
    for i in range(count):
        case, rng = make_case(seed + i, level, unanswerable), np.random.default_rng([seed + i, 0xC1E])
        seen = case.entries if rng.random() >= slip else ()
        said = NOT_KNOWN if rng.random() < unsure else pick(rng, seen or VALUES[case.field])
        yield *opening(case, instructions), Message("assistant", said)


def vocabulary(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Text to train a tokenizer on: documents, and logs with the names of their roles, in equal numbers."""
    yield from documents(seed, count - count // 2, level)
    for log in logs(seed, count // 2, level, instructions=False):
        yield "\n".join(f"{message.role}\n{message.text}" for message in log)
