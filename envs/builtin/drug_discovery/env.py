"""The drug discovery environment: a molecule and goals are given; one answer ends with the SMILES of a molecule that should meet them."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...contract import Observation
from ...spaces import MessagesSpace, UnicodeText
from .cases import level_of, make_case
from .chemists import opening


class DrugDiscovery(gymnasium.Env[Observation, str]):
    """`burnish/DrugDiscovery-v0`: hands out cases and takes one answer each. A verifier says what it is worth; the reward here is 0.

    level: difficulty (see `cases.LEVELS`). instructions: start with a system message that explains the form of an answer.
    data: what a verifier goes by, `molecule`, its SMILES, and `goals`. Both stand in the request as well.
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
        data = {"molecule": case.molecule.smiles, "goals": [goal.to_dict() for goal in case.goals]}
        return opening(case, self._instructions), {"data": data}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._open:
            raise ResetNeeded("DrugDiscovery: the molecule is given; call reset() before step()")
        self._open = False
        return (), 0.0, True, False, {}
