"""The inspection environment: a part is on the bench; measure what matters, then give a verdict with its reason."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...contract import ConversationEnv, Observation
from ...spaces import MessagesSpace, UnicodeText
from ...tool_env import ToolEnv
from ...tools import Tools
from ...types import Message, ToolCall
from . import wording
from .inspectors import opening
from .parts import level_of, make_part

COSTLY = 3.0


class InspectionEnv(gymnasium.Env[Observation, str]):
    """Hands out parts and takes verdicts. What a verdict is worth, a verifier says; the reward here is 0.

    level: difficulty (see `parts.LEVELS`). instructions: start with a system message that explains the rules.
    metrics: `cost`, what the measurements so far cost. data: the level, and the verdict as read ("verdict", "reason"), once given.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, level: int = 0, instructions: bool = True) -> None:
        self._level = level
        self._settings = level_of(level)
        self._instructions = instructions
        self.observation_space = MessagesSpace()
        self.action_space = UnicodeText()
        self._open = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        part_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        self._cost, self._open = 0.0, True
        self._part_seed = part_seed
        return opening(make_part(part_seed, self._level), self._instructions), self._info({})

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._open:
            raise ResetNeeded("QualityInspection: the verdict is in; call reset() before step()")
        read = wording.parse_verdict(action)
        if read is None:
            return (Message("user", wording.VERDICT_HELP),), 0.0, False, False, self._info({})
        self._open = False
        return (), 0.0, True, False, self._info({"verdict": read[0], "reason": read[1]})

    def tool_context(self) -> dict[str, Any]:
        """What the tools get to know: the level, beside the seed that says which part is on the bench."""
        return {"level": self._level}

    def on_tool_result(self, call: ToolCall, text: str) -> dict[str, Any]:
        """Measuring costs money; looking up a specification does not."""
        if call.name == "measure":
            self._cost += COSTLY if call.arguments.get("feature") in self._settings.costly else 1.0
        return self._info({})

    def _info(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"metrics": {"cost": self._cost}, "data": {"level": self._level, **data}}


def make(level: int = 0, tools: str = "local", instructions: bool = True, max_calls: int = 12, deadline_s: float = 10.0) -> ConversationEnv:
    """`burnish/QualityInspection-v0`: the environment with its tools.

    tools: "host:port" of the tool service, or "local" for the same tools inside this process. max_calls: tool calls per inspection.
    deadline_s: seconds one remote tool call may take.
    """
    return ToolEnv(InspectionEnv(level, instructions), _tools(tools, deadline_s), max_calls=max_calls)


@lru_cache(maxsize=16)  # a client of a service may be allowed to set the deadline
def _tools(address: str, deadline_s: float) -> Tools:
    """One set of tools for all environments of a process."""
    if address == "local":
        from ...tools import ToolSet
        from . import service

        return ToolSet.from_module(service)
    from ...remote.tools import RemoteToolSet

    return RemoteToolSet(address, deadline_s=deadline_s)
