"""The environment of order sheets: a sheet and a question are given, one answer is taken."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...contract import Observation
from ...spaces import MessagesSpace, UnicodeText
from ...types import Message
from .sheets import LEVELS, NOT_KNOWN, Case, make_case

INSTRUCTIONS = (
    "You are given an order sheet and a question. Answer with the value that the sheet has, and nothing else. "
    f"Where it has none, or its lines disagree, answer: {NOT_KNOWN}"
)


class GroundedAnswers(gymnasium.Env[Observation, str]):
    """`burnish/GroundedAnswers-v0`: asks what a sheet says, what it does not say, and what its lines say differently. One answer each.

    A reward judges it, such as `burnish/abstention-v1`; the environment's own is 0. level: 0 for sheets of one order, 1 for sheets of
    several. unanswerable: share of the questions that the sheet does not answer. instructions: start with a system message that says what
    is wanted.
    data: `reference_answer`, the value, or null where there is none; `kind`: answerable, missing or contradicting. Hidden from the policy.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, level: int = 0, unanswerable: float = 0.5, instructions: bool = True) -> None:
        if level not in range(len(LEVELS)):
            raise ValueError(f"burnish/GroundedAnswers-v0: level must be one of 0 to {len(LEVELS) - 1}, not {level!r}")
        if not 0 <= unanswerable <= 1:
            raise ValueError(f"burnish/GroundedAnswers-v0: unanswerable is a share of the questions, from 0 to 1, not {unanswerable:g}")
        self._level, self._unanswerable, self._instructions = level, unanswerable, instructions
        self.observation_space = MessagesSpace()
        self.action_space = UnicodeText()
        self._open = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        case = make_case(seed if seed is not None else int(self.np_random.integers(2**31)), self._level, self._unanswerable)
        self._open = True
        return opening(case, self._instructions), {"data": {"reference_answer": case.answer, "kind": case.kind}}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._open:
            raise ResetNeeded("burnish/GroundedAnswers-v0: the question is answered; call reset() before step()")
        self._open = False
        return (), 0.0, True, False, {}


def opening(case: Case, instructions: bool) -> tuple[Message, ...]:
    """The messages that a case starts with."""
    system = (Message("system", INSTRUCTIONS),) if instructions else ()
    return (*system, Message("user", case.text))
