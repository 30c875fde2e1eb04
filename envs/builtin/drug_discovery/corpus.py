"""Training data a laboratory would have: literature as text, the notebooks of its chemists as conversations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...types import Message
from . import wording
from .cases import TRAIN_SEEDS, Case, make_case
from .chemists import EXPERT, Habits, choose, work
from .molecules import Exchange


def literature(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """What is written about such molecules: what groups do in the place of others (three tenths), tables of compounds (a tenth), how
    goals were met (three tenths), and whole cases, each line below who spoke (three tenths). All of it is right, and of molecules for
    training."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, 0x117])
        kind = rng.choice(4, p=(0.3, 0.1, 0.3, 0.3))
        case = make_case(int(rng.integers(TRAIN_SEEDS)), level)
        if kind == 0:
            yield "\n".join(wording.group_fact(case.molecule, exchange) for exchange in _any_two(case, rng))
        elif kind == 1:
            yield "\n".join(wording.entry(case.molecule.exchanged(exchange)) for exchange in _any_two(case, rng))
        else:
            yield (wording.study if kind == 2 else wording.session)(case, choose(case, EXPERT, rng))


def notebooks(
    seed: int,
    count: int,
    level: int = 0,
    guess: float = 0.2,
    overlook: float = 0.5,
    notes: bool = False,
    instructions: bool = True,
) -> Iterator[tuple[Message, ...]]:
    """Conversations of the chemists of the past (see `Habits`) about the cases of seeds `seed`, `seed + 1`, …."""
    habits = Habits(guess, overlook, notes)
    for i in range(count):
        yield work(seed + i, level, habits, instructions)


def vocabulary(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Text to train a tokenizer on: literature, and notebooks with the names of their roles, in equal numbers."""
    yield from literature(seed, count - count // 2, level)
    for talk in notebooks(seed, count // 2, level, notes=True, instructions=False):
        yield "\n".join(f"{message.role}\n{message.text}" for message in talk)


def _any_two(case: Case, rng: np.random.Generator) -> Iterator[Exchange]:
    exchanges = list(case.molecule.exchanges())
    yield from (exchanges[int(i)] for i in rng.permutation(len(exchanges))[:2])
