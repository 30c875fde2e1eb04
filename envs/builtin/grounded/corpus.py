"""What a shop teaches its clerks, and what they answered then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...types import Message
from .env import opening
from .sheets import NOT_KNOWN, VALUES, Case, SheetLine, make_case, pick


def exercises(
    seed: int, count: int, level: int = 0, entries: int = 100, unsure: float = 0.1, instructions: bool = True
) -> Iterator[tuple[Message, ...]]:
    """How a sheet is read: questions that it answers, and the right answers, of the cases of seeds `seed`, `seed + 1`, ….

    entries: of each sheet at most so many are left, the one that is asked for among them: reading is learned soonest from sheets of one.
    unsure: as of `logs`, so that the words are known.
    """
    for i in range(count):
        case, rng = make_case(seed + i, level, unanswerable=0.0), np.random.default_rng([seed + i, 0xE8E])
        assert case.answer is not None
        said = NOT_KNOWN if rng.random() < unsure else case.answer
        yield *opening(cut(case, entries), instructions), Message("assistant", said)


def cut(case: Case, entries: int) -> Case:
    """A case whose sheet has at most so many entries left, the first one that answers it among them."""
    if entries < 1:
        raise ValueError(f"entries: a sheet that answers a question has one at least, not {entries}")
    places = [(i, name) for i, line in enumerate(case.lines) for name in line.fields]
    asked = next((i, name) for i, name in places if (case.lines[i].order, name) == (case.order, case.field))
    kept = {asked, *[place for place in places if place != asked][: entries - 1]}
    lines = (SheetLine(one.order, {name: one.fields[name] for name in one.fields if (i, name) in kept}) for i, one in enumerate(case.lines))
    return replace(case, lines=tuple(line for line in lines if line.fields))


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
    """Text to train a tokenizer on: what clerks were asked and answered, with the names of the roles."""
    for log in logs(seed, count, level, instructions=False):
        yield "\n".join(f"{message.role}\n{message.text}" for message in log)
