"""Scripted chemists: the expert, and the chemists of the past, whose notebooks are what a laboratory has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...types import Message
from . import wording
from .cases import Case, make_case
from .molecules import Exchange


@dataclass(frozen=True, slots=True)
class Habits:
    """How a chemist works, as probabilities. The expert has none of these habits.

    guess: any exchange is made. overlook: only the first goal is looked at. notes: whether the chemist first writes down which way the
    property has to go and what is exchanged for what, on a line of its own before the molecule.
    """

    guess: float = 0.0
    overlook: float = 0.0
    notes: bool = False


EXPERT = Habits()


def work(seed: int, level: int, habits: Habits = EXPERT, instructions: bool = True) -> tuple[Message, ...]:
    """The conversation about the case of `seed`: the request, and the molecule."""
    case = make_case(seed, level)
    rng = np.random.default_rng([seed, level, 0xC4E])
    return (*opening(case, instructions), Message("assistant", wording.answer(case, choose(case, habits, rng), habits.notes)))


def opening(case: Case, instructions: bool) -> tuple[Message, ...]:
    """The messages a case starts with."""
    system = (Message("system", wording.INSTRUCTIONS),) if instructions else ()
    return (*system, Message("user", wording.request(case)))


def choose(case: Case, habits: Habits, rng: np.random.Generator) -> Exchange:
    """The exchange that is made: one of those that meet the goals, or that the habits lead to."""
    guess, overlook = rng.random(2) < (habits.guess, habits.overlook)
    goals = () if guess else case.goals[:1] if overlook else case.goals
    fitting = [exchange for exchange in case.exchanges() if not goals or case.meets(exchange, goals)]
    return fitting[int(rng.integers(len(fitting)))]
