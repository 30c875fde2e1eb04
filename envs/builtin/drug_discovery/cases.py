"""Cases: a molecule and its goals. A case follows from its seed and level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .fragments import ADDITIVE, GROUPS
from .goals import BOUNDS, Bound, Goal
from .molecules import Exchange, Molecule, draw_molecule

TRAIN_SEEDS = 1_000_000_000
"""Cases of seeds below this are for training; those from here on are held out, and so are their molecules (`Molecule.held_out`)."""

GRID: Mapping[str, float] = {"weight": 5.0, "logp": 0.1, "tpsa": 5.0, "donors": 1.0, "acceptors": 1.0}
"""What the bounds of goals are multiples of."""
LEAST_MOVE: Mapping[str, float] = {"weight": 15.0, "logp": 0.5, "tpsa": 15.0, "donors": 1.0, "acceptors": 1.0}
"""By how much a property must be able to move, for a goal to ask it to."""

FEWEST, MOST = 2, 0.25
"""How many exchanges of a molecule meet its goals, and at most which share of them: some choice, and little luck."""
BITE = 2 / 3
"""At most so much of what meets the goals that are not met yet meets all: the others are there for a reason."""


@dataclass(frozen=True, slots=True)
class Level:
    """What makes a difficulty level. moves: goals that the molecule does not meet. keeps: goals that it meets, and must go on meeting.
    groups: that it has, and that are exchanged. properties: that goals are of."""

    moves: int
    keeps: int
    groups: tuple[str, ...] = tuple(GROUPS)
    properties: tuple[str, ...] = ADDITIVE


SMALL = ("H", "F", "Cl", "C", "O", "OC", "N", "C#N")
"""Groups that a small model learns in minutes: of an atom or two, and far apart in what they do."""
LEVELS: Mapping[int, Level] = {
    0: Level(moves=1, keeps=1, groups=SMALL, properties=("logp", "tpsa", "donors")),
    1: Level(moves=1, keeps=1),
    2: Level(moves=2, keeps=1),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A molecule, its goals, those that it does not meet first (`moves` of them), and the groups that chemists know of."""

    seed: int
    molecule: Molecule
    goals: tuple[Goal, ...]
    moves: int
    groups: tuple[str, ...] = tuple(GROUPS)

    def exchanges(self) -> Iterator[Exchange]:
        """What chemists may think of."""
        return self.molecule.exchanges(self.groups)

    def meets(self, exchange: Exchange, goals: tuple[Goal, ...] | None = None) -> bool:
        """Whether an exchange meets all goals, or all of those given."""
        values = self.molecule.exchanged(exchange).properties.values
        return all(goal.met_by(values) for goal in goals or self.goals)

    @property
    def fitting(self) -> tuple[Exchange, ...]:
        """The exchanges of these groups that meet all goals. What a policy answers need not be one of them."""
        return tuple(exchange for exchange in self.exchanges() if self.meets(exchange))


def level_of(level: int) -> Level:
    """The level's settings. Raises ValueError for a level that does not exist."""
    if level not in LEVELS:
        raise ValueError(f"drug discovery has levels {', '.join(map(str, LEVELS))}; level {level!r} does not exist")
    return LEVELS[level]


@lru_cache(maxsize=1024)
def make_case(seed: int, level: int) -> Case:
    """The case of this seed at this level. Which property is to move first, and which way, is equally likely."""
    settings, rng = level_of(level), np.random.default_rng([seed, level, 0xD2])
    first, bound = settings.properties[int(rng.integers(len(settings.properties)))], BOUNDS[int(rng.integers(len(BOUNDS)))]
    while True:
        molecule = draw_molecule(rng, seed >= TRAIN_SEEDS, settings.groups)
        goals = _draw_goals(rng, molecule, first, bound, settings)
        if goals is None:
            continue
        after = [molecule.exchanged(exchange).properties.values for exchange in molecule.exchanges(settings.groups)]
        moving = [values for values in after if all(goal.met_by(values) for goal in goals[: settings.moves])]
        fitting = [values for values in moving if all(goal.met_by(values) for goal in goals)]
        if FEWEST <= len(fitting) <= min(MOST * len(after), BITE * len(moving)):
            return Case(seed, molecule, goals, settings.moves, settings.groups)


def _draw_goals(rng: np.random.Generator, molecule: Molecule, first: str, bound: Bound, level: Level) -> tuple[Goal, ...] | None:
    """Goals that one exchange, drawn here and told to nobody, meets; None where it moves too little, or the first the other way."""
    exchanges = list(molecule.exchanges(level.groups))
    before = molecule.properties.values
    after = molecule.exchanged(exchanges[int(rng.integers(len(exchanges)))]).properties.values
    if (after[first] > before[first]) != (bound == "at_least"):
        return None
    others = [name for name in level.properties if name != first]
    order = [first, *(others[i] for i in rng.permutation(len(others)))]
    moved, kept = order[: level.moves], order[level.moves : level.moves + level.keeps]
    if any(abs(after[name] - before[name]) < LEAST_MOVE[name] for name in moved):
        return None
    moves = [_move(rng, name, before[name], after[name]) for name in moved]
    return (*moves, *(_keep(rng, name, before[name], after[name]) for name in kept))


def _move(rng: np.random.Generator, name: str, before: float, after: float) -> Goal:
    """A bound on the way from before to after, in its second half, that before is not within."""
    bound: Bound = "at_least" if after > before else "at_most"
    goal = Goal(name, bound, _towards(before, before + (after - before) * float(rng.uniform(0.5, 1.0)), GRID[name]))
    return goal if not goal.met_by({name: before}) else Goal(name, bound, _towards(before, after, GRID[name]))


def _keep(rng: np.random.Generator, name: str, before: float, after: float) -> Goal:
    """A bound that both are just within."""
    bound = BOUNDS[int(rng.integers(len(BOUNDS)))]
    nearest = min(before, after) if bound == "at_least" else max(before, after)
    return Goal(name, bound, _towards(nearest - 1 if bound == "at_least" else nearest + 1, nearest, GRID[name]))


def _towards(origin: float, value: float, grid: float) -> float:
    """The multiple of the grid nearest to value on the side of origin, so that what reaches value is past it."""
    steps = value / grid
    return round((math.floor(steps + 1e-9) if origin < value else math.ceil(steps - 1e-9)) * grid, 1)
