"""`burnish/SingleTurn-v0`: asks what the task's prompt asks, takes one answer, and leaves the judging to the rewards."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ..contract import Observation
from ..spaces import MessagesSpace, UnicodeText
from ..types import Task


class SingleTurn(gymnasium.Env[Observation, str]):
    """The environment for tasks out of a file (`[tasks]`): the prompt is the task's, any answer ends the episode, its reward is 0.

    The tools of a task's row (`task.data["tools"]`) are described to the policy, not run: what it writes is its answer.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def __init__(self) -> None:
        self._asked = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """No message beyond the task's prompt, which the rollout puts first. Raises ValueError for a task without one."""
        super().reset(seed=seed)
        task: Task | None = (options or {}).get("task")
        if task is None or not task.prompt:
            raise ValueError("burnish/SingleTurn-v0 asks the prompt of a task, and this one has none; give the recipe a table [tasks]")
        self._asked = True
        tools = task.data.get("tools", ())
        return (), {"tools": tools} if tools else {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self._asked:
            raise ResetNeeded("burnish/SingleTurn-v0: the episode is over; call reset() before step()")
        self._asked = False
        return (), 0.0, True, False, {}
