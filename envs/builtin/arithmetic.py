"""`burnish/Arithmetic-v0`: one question, one answer. The smallest environment, to read and to copy."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ..contract import Observation
from ..spaces import MessagesSpace, UnicodeText
from ..types import Message

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


class Arithmetic(gymnasium.Env[Observation, str]):
    """Asks `What is 3 + 4?`; the reward is 1.0 when the last number in the reply is the answer, else 0.0: 7, 07, 7.0 and 1,000.

    max_operand: operands are drawn from 0 to this number. operations: some of "+", "-", "*".
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()
    reward_parts = ("correct",)

    def __init__(self, max_operand: int = 9, operations: Sequence[str] = ("+", "-")) -> None:
        if max_operand < 1:
            raise ValueError(f"burnish/Arithmetic-v0: max_operand must be at least 1, not {max_operand}")
        if not operations or not set(operations) <= set(OPERATIONS):
            raise ValueError(f"burnish/Arithmetic-v0: operations must be some of {', '.join(OPERATIONS)}, not {list(operations)}")
        self._max_operand, self._operations = max_operand, list(operations)
        self._answer: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        a, b = (int(n) for n in self.np_random.integers(0, self._max_operand + 1, size=2))
        sign = self._operations[int(self.np_random.integers(len(self._operations)))]
        self._answer = OPERATIONS[sign](a, b)
        return (Message("user", f"What is {a} {sign} {b}?"),), {"data": {"answer": self._answer}}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._answer is None:
            raise ResetNeeded("burnish/Arithmetic-v0: the episode is over; call reset() before step()")
        numbers = _NUMBER.findall(action)
        correct = float(bool(numbers) and Decimal(numbers[-1].replace(",", "")) == self._answer)
        self._answer = None
        return (), correct, True, False, {"reward_parts": {"correct": correct}}
