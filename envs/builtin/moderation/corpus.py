"""Training data an organisation would have: policies and what was made of them as text, the rulings of its moderators as conversations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...types import Message
from . import wording
from .cases import TRAIN_SEEDS, make_case
from .moderators import Habits, moderate


def policy_texts(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Policies at work, as a handbook for moderators has them: posts by topic (a tenth), rules with what they ask for in a case (two
    tenths), and whole cases, each line below who spoke (seven tenths). All of them are right, and of policies for training."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, 0xB00C])
        kind = rng.choice(3, p=(0.1, 0.2, 0.7))
        cases = [make_case(int(rng.integers(TRAIN_SEEDS)), level) for _ in range(1 if kind == 2 else 3)]
        if kind == 0:
            yield "\n".join(wording.topic_note(case) for case in cases)
        elif kind == 1:
            yield "\n".join(wording.explanation(rule, case.facts) for case in cases for rule in case.policy.rules[:1])
        else:
            yield wording.session(cases[0])


def rulings(
    seed: int,
    count: int,
    level: int = 0,
    slip: float = 0.2,
    overlook: float = 0.5,
    notes: bool = False,
    instructions: bool = True,
) -> Iterator[tuple[Message, ...]]:
    """Conversations of the moderators of the past (see `Habits`) about the cases of seeds `seed`, `seed + 1`, …."""
    habits = Habits(slip, overlook, notes)
    for i in range(count):
        yield moderate(seed + i, level, habits, instructions)


def vocabulary(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Text to train a tokenizer on: handbook pages, and rulings with the names of their roles, in equal numbers."""
    yield from policy_texts(seed, count - count // 2, level)
    for ruling in rulings(seed, count // 2, level, notes=True, instructions=False):
        yield "\n".join(f"{message.role}\n{message.text}" for message in ruling)
