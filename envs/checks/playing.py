"""Episodes to check with: an environment played with made-up replies, for what its rewards, verifiers and tools get to see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from ..contract import ConversationEnv, StepInfo, make_env, reset_env, step_env
from ..tools import ToolContext
from ..types import Message, Task
from .environment import PLAIN_REPLIES

TURNS = 8


@dataclass
class CheckedEpisode:
    """One episode. cut: whether it went on after the last turn that was played. tool_data: of the task, as tools get to know it."""

    task: Task
    messages: list[Message] = field(default_factory=list)
    reward: float = 0.0
    info: StepInfo = field(default_factory=StepInfo)
    turns: int = 0
    cut: bool = True
    tool_data: Mapping[str, Any] = field(default_factory=dict)


def play(
    id: str, kwargs: Mapping[str, Any], replies: Sequence[str] = (), seeds: Sequence[int] = (0, 1), attempts: int = 4
) -> list[CheckedEpisode]:
    """`attempts` episodes of each seed, each beginning with another reply: those given, then plain ones.

    Raises what making the environment raises, and EpisodeFailure where it breaks its contract.
    """
    said = (*replies, *PLAIN_REPLIES)
    return [_one(id, kwargs, Task(f"check-{seed}", seed), islice(cycle(said), i, i + TURNS)) for seed in seeds for i in range(attempts)]


def _one(id: str, kwargs: Mapping[str, Any], task: Task, replies: Iterator[str]) -> CheckedEpisode:
    env, played = make_env(id, **kwargs), CheckedEpisode(task)
    try:
        messages, played.info = reset_env(env, id, task, f"{task.id}/0")
        played.messages += messages
        played.tool_data = _tool_data(env)
        for text in replies:
            step = step_env(env, id, text)
            played.messages += (Message("assistant", text), *step.messages)
            played.reward, played.info, played.turns = played.reward + step.reward, played.info.then(step.info), played.turns + 1
            if step.terminated or step.truncated:
                played.cut = False
                break
    finally:
        env.close()
    return played


def _tool_data(env: ConversationEnv) -> Mapping[str, Any]:
    given = env.get_wrapper_attr("tool_context")() if env.has_wrapper_attr("tool_context") else {}
    return given.data if isinstance(given, ToolContext) else given
