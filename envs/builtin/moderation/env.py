"""The moderation environment: a policy and a post are given; one answer says what becomes of the post and by which rule."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...contract import Observation
from ...spaces import MessagesSpace, UnicodeText
from .cases import make_case
from .moderators import opening
from .policies import level_of


class ContentModeration(gymnasium.Env[Observation, str]):
    """`burnish/ContentModeration-v0`: hands out cases and takes one answer each. A verifier says what it is worth; the reward here is 0.

    level: difficulty (see `policies.LEVELS`). instructions: start with a system message that explains the form of an answer.
    data: what the policy asks for, `decision` and `rules`, of which naming any is right. The policy never sees it.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, level: int = 0, instructions: bool = True) -> None:
        level_of(level)
        self._level, self._instructions = level, instructions
        self.observation_space = MessagesSpace()
        self.action_space = UnicodeText()
        self._open = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        case = make_case(seed if seed is not None else int(self.np_random.integers(2**31)), self._level)
        self._open = True
        return opening(case, self._instructions), {"data": {"decision": case.ruling.decision, "rules": list(case.ruling.rules)}}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._open:
            raise ResetNeeded("ContentModeration: the ruling is given; call reset() before step()")
        self._open = False
        return (), 0.0, True, False, {}
