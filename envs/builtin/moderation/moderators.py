"""Scripted moderators: the expert, and the moderators of the past, whose rulings are the history that an organisation has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...types import Message
from . import wording
from .cases import Case, make_case
from .policies import DECISIONS, ModerationRule


@dataclass(frozen=True, slots=True)
class Habits:
    """How a moderator works, as probabilities. The expert has none of these habits.

    slip: the decision written down is any of the wrong ones. overlook: the condition of the rule that decides is overlooked, so that what
    the rule asks for otherwise is written down. notes: whether the moderator first writes down the rule, and what its condition asks
    about, on a line of its own before the ruling; of a condition that is overlooked nothing.
    """

    slip: float = 0.0
    overlook: float = 0.0
    notes: bool = False


EXPERT = Habits()


def moderate(seed: int, level: int, habits: Habits = EXPERT, instructions: bool = True) -> tuple[Message, ...]:
    """The conversation about the case of `seed`: the request, and the ruling."""
    case = make_case(seed, level)
    rng = np.random.default_rng([seed, level, 0x3D17])
    return (*opening(case, instructions), Message("assistant", _answer(case, habits, rng)))


def opening(case: Case, instructions: bool) -> tuple[Message, ...]:
    """The messages a case starts with."""
    system = (Message("system", wording.INSTRUCTIONS),) if instructions else ()
    return (*system, Message("user", wording.request(case)))


def _answer(case: Case, habits: Habits, rng: np.random.Generator) -> str:
    """The ruling, after its note. The rule that is named is a right one: what errs is the decision."""
    right, number = case.ruling.decision, case.ruling.rules[0]
    rule = case.policy.rules[number - 1]
    if rng.random() < habits.overlook:
        rule = ModerationRule(rule.topic, rule.decision)
    written = rule.decide(case.facts)
    if rng.random() < habits.slip:
        wrong = [decision for decision in DECISIONS if decision != right]
        written = wrong[int(rng.integers(len(wrong)))]
    note = f"{wording.note(rule, case.facts)}\n" if habits.notes else ""
    return note + wording.ruling_text(written, number)
