"""Training data a laboratory would have: literature as text, the notebooks of its chemists as conversations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ...types import Message
from . import wording
from .cases import LEAST_MOVE, LEVELS, TRAIN_SEEDS, Case, level_of, make_case
from .chemists import EXPERT, Habits, choose, work
from .fragments import ADDITIVE, GROUPS
from .goals import BOUNDS, Bound
from .molecules import Exchange

RULES = 16
"""Lines of a list of exchanges."""


def literature(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """What is written about such molecules: lists of what to exchange for what (half), how much a group changes in the place of another
    (a tenth), tables of compounds (a tenth), how goals were met (a tenth), and whole cases, each line below who spoke (a fifth). All of it
    is right, and of molecules for training."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, 0x117])
        kind = rng.choice(5, p=(0.5, 0.1, 0.1, 0.1, 0.2))
        case = make_case(int(rng.integers(TRAIN_SEEDS)), level)
        if kind == 0:
            yield "\n".join(_rule(rng, level) for _ in range(RULES))
        elif kind == 1:
            yield "\n".join(wording.group_fact(case.molecule, exchange) for exchange in _any_two(case, rng))
        elif kind == 2:
            yield "\n".join(wording.entry(case.molecule.exchanged(exchange)) for exchange in _any_two(case, rng))
        else:
            yield (wording.study if kind == 3 else wording.session)(case, choose(case, EXPERT, rng))


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


def _rule(rng: np.random.Generator, level: int) -> str:
    """Something that an exchange is good for, the property and the way that it goes equally likely."""
    properties = level_of(level).properties
    name, bound = properties[int(rng.integers(len(properties)))], BOUNDS[int(rng.integers(len(BOUNDS)))]
    pairs = _movers(name, bound, level)
    return wording.rule(name, bound, *pairs[int(rng.integers(len(pairs)))])


@lru_cache(maxsize=2 * len(ADDITIVE) * len(LEVELS))
def _movers(name: str, bound: Bound, level: int) -> tuple[tuple[str, str], ...]:
    """The exchanges of one group for another that move a property this way, by as much as a goal may ask for."""
    groups, sign = level_of(level).groups, 1 if bound == "at_least" else -1
    value = {group: sign * GROUPS[group].adds.values[name] for group in groups}
    return tuple((old, new) for old in groups for new in groups if value[new] - value[old] >= LEAST_MOVE[name])


def _any_two(case: Case, rng: np.random.Generator) -> Iterator[Exchange]:
    exchanges = list(case.exchanges())
    yield from (exchanges[int(i)] for i in rng.permutation(len(exchanges))[:2])
