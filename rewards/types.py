"""What rewards and verifiers receive and give: one pair of types for in-process plug-ins and remote verifiers alike."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..envs.types import Message, Task


@dataclass(frozen=True, slots=True)
class RewardInput:
    """One finished episode, as a reward plug-in or verifier sees it. Everything but messages is hidden from the policy.

    messages: the whole conversation, prompt included. env_reward: sum of the environment's step rewards; env_parts: what it said
    that sum is made of. metrics: numbers of the episode (`tool_calls`, `cost`, `turns`). data: the hidden truth, `task.data`
    with what the environment put into `info["data"]` on top. truncation: the limit the policy ran into
    ("max_turns", "max_tokens", "context", "env"), or None.

    Example: `RewardInput("train-17/0", Task("train-17", 17), messages, 0.0, {}, {"cost": 3.0}, {"verdict": "scrap"}, None)`.
    """

    episode_id: str
    task: Task
    messages: tuple[Message, ...]
    env_reward: float
    env_parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    truncation: str | None = None


class InvalidScore(ValueError):
    """A score that is no finite number: the scorer's mistake (REWARD_INVALID, VERIFIER_INVALID), never a reward of zero."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one scorer says about one episode.

    value is what a rubric weighs; parts are reported beside it, unweighted, and do not change the total. labels name classes to
    compute recall over: "expected" and "predicted". Numbers of any real type (numpy's, bool) become floats. Raises `InvalidScore`
    when one of them is not a finite number, or a label is not a string.

    Example: `Score(1.0, {"reason": 0.0}, {"expected": "scrap", "predicted": "scrap"})`.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite(self.value, "value"))
        if self.parts:
            object.__setattr__(self, "parts", {str(name): _finite(part, f"part {name!r}") for name, part in self.parts.items()})
        for name, label in self.labels.items():
            if not isinstance(label, str):
                raise InvalidScore(f"label {name!r} of the score must be a string, not {label!r}")


def _finite(number: Any, what: str) -> float:
    if type(number) is float and math.isfinite(number):  # nearly always; isinstance on an abstract class is slow
        return number
    if not isinstance(number, numbers.Real | np.bool_) or not math.isfinite(number):
        raise InvalidScore(
            f"{what} of the score must be a finite number, not {number!r}; raise an exception when an episode cannot be judged"
        )
    return float(number)


class Scorer(Protocol):
    """Scores finished episodes: an in-process plug-in or a verifier behind gRPC.

    `score` raises `EpisodeFailure` (REWARD_* or VERIFIER_* kinds, culprit named) when it cannot give a score.
    """

    @property
    def name(self) -> str:
        """Name of the parts it adds: "<name>" for the value, "<name>.<part>" for each part."""
        ...

    async def score(self, episode: RewardInput) -> Score: ...
