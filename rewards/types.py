"""What rewards and verifiers receive and give: one pair of types for in-process plug-ins and remote verifiers alike."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, cast

import numpy as np

from ..envs.failures import Failure, fit
from ..envs.types import Message, Task


@dataclass(frozen=True, slots=True)
class RewardInput:
    """One finished episode, as a reward plug-in or verifier sees it. Everything but messages is hidden from the policy.

    Judge `answer`, not the last message: that is the tool's or the environment's when a limit cut the episode short.

    messages: the whole conversation, prompt included. env_reward: sum of the environment's step rewards; env_parts: what it said
    that sum is made of. metrics: numbers of the episode (`tool_calls`, `cost`, `turns`). data: the hidden truth, `task.data`
    with what the environment put into `info["data"]` on top. truncation: the limit the policy ran into
    ("max_turns", "max_tokens", "context", "time", "env"), or None.

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

    @property
    def answer(self) -> str | None:
        """The policy's last words; None when the episode was cut short before it answered, so that it earned nothing by them.

        What the task's prompt or the environment's first messages say for the assistant is none of the policy's (`turns_of`).

        Example: with `messages` of a question and `Message("assistant", "7")` it is "7"; with the tool's answer after that, None.
        """
        spoken = _spoken(self)
        last = self.messages[-1] if spoken and spoken[-1] == len(self.messages) - 1 else None
        return last.text if last is not None and not last.tool_calls else None


@dataclass(frozen=True, slots=True)
class TurnInput:
    """One turn of a finished episode, as a reward plug-in of level "turn" sees it.

    index: of the turn, counted from 0. messages: the conversation up to and including what the policy said in this turn. observation: what
    the environment answered to it, tool results included; empty where the episode ended.

    Example: `TurnInput(episode, 0, (question, Message("assistant", "measure(part=17)")), (Message("tool", "0.02"),))`.
    """

    episode: RewardInput
    index: int
    messages: tuple[Message, ...]
    observation: tuple[Message, ...] = ()

    @property
    def message(self) -> Message:
        """What the policy said in this turn."""
        return self.messages[-1]


def turns_of(episode: RewardInput) -> tuple[TurnInput, ...]:
    """The turns of an episode, in order: one per assistant message after the task's prompt.

    Where the episode counts its turns (`metrics["turns"]`, as every rollout does) the last so many are the policy's: an environment may
    open with assistant messages of its own, which are no turns.
    """
    messages, spoken = episode.messages, _spoken(episode)
    ends = [*spoken[1:], len(messages)]
    return (
        tuple(
            TurnInput(episode, index, messages[: at + 1], messages[at + 1 : end])
            for index, (at, end) in enumerate(zip(spoken, ends, strict=True))
        )
        if spoken
        else ()
    )


def _spoken(episode: RewardInput) -> list[int]:
    """Where in the messages of an episode the policy speaks."""
    spoken = [i for i in range(len(episode.task.prompt), len(episode.messages)) if episode.messages[i].role == "assistant"]
    if "turns" in episode.metrics:
        spoken = spoken[max(0, len(spoken) - int(episode.metrics["turns"])) :]
    return spoken


def in_full(value: float) -> str:
    """A number as it is, without an exponent up to 15 digits. Examples: `1000000.0` is "1000000", `0.1` is "0.1"."""
    return f"{value + 0.0:.15g}"  # a negative zero is a zero


MAX_EXPLANATION = 2000
"""Characters of an explanation that are kept."""
UNREADABLE = "unreadable"
"""The part that is 1 when the answer is blank, or not the JSON that a grader reads: the policy's doing, worth the least there is."""


class InvalidScore(ValueError):
    """A score that is no finite number: the scorer's mistake (REWARD_INVALID, VERIFIER_INVALID), never a reward of zero."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one scorer says about one episode.

    value is what a rubric weighs; parts are reported beside it, unweighted, and do not change the total. labels name classes to
    compute recall over: "expected" and "predicted"; "constant" is what a policy that always says the same would have to say to be labelled
    as expected, where that is not the expected label itself ("right"). turns: where each turn was judged, its value, in order, for credit
    per turn.
    explanation: why this value, for people; what is longer than `MAX_EXPLANATION` characters is cut, control characters are written as
    escapes, and two scores that differ in it alone are equal. Numbers of any real type (numpy's, bool) become floats. Raises
    `InvalidScore` when one of them is not a finite number, or a label or the explanation is not a string.

    Example: `Score(1.0, {"reason": 0.0}, {"expected": "scrap", "predicted": "scrap"}, explanation="the bore is 0.2 mm too wide")`.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[float, ...] = ()
    explanation: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        value = self.value
        if type(value) is not float or not math.isfinite(value):
            object.__setattr__(self, "value", _finite(value, "value"))
        if self.explanation or type(self.explanation) is not str:
            object.__setattr__(self, "explanation", _explained(self.explanation))
        if type(self.parts) is dict and not (self.parts or self.labels or self.turns) and type(self.labels) is dict:
            return  # nearly always, and scores are made by the thousand
        for what, given in (("parts", self.parts), ("labels", self.labels)):
            if type(given) is not dict and not isinstance(given, Mapping):
                raise InvalidScore(f"{what} of the score must be a mapping, not {type(given).__name__}")
        if self.parts:
            object.__setattr__(self, "parts", {str(name): _finite(part, f"part {name!r}") for name, part in self.parts.items()})
        for name, label in self.labels.items():
            if not isinstance(label, str) or not isinstance(name, str):
                raise InvalidScore(f"label {name!r} of the score must be a string, not {label!r}")
        object.__setattr__(self, "turns", tuple(_finite(value, f"turn {i}") for i, value in enumerate(self.turns)))


def _explained(given: Any) -> str:
    if not isinstance(given, str):
        raise InvalidScore(f"explanation of the score must be a string, not {type(given).__name__}")
    return fit(given, MAX_EXPLANATION)


def _finite(number: Any, what: str) -> float:
    if type(number) is float and math.isfinite(number):  # nearly always; isinstance on an abstract class is slow
        return number
    try:
        value = float(number) if isinstance(number, numbers.Real | np.bool_) else math.nan
    except OverflowError:  # an integer or fraction beyond what a float holds
        value = math.inf
    if not math.isfinite(value):
        raise InvalidScore(
            f"{what} of the score must be a finite number, not {number!r:.100}; raise an exception when an episode cannot be judged"
        )
    return value


def exact_sum(values: Iterable[float], what: str) -> float:
    """The sum without rounding on the way. Raises InvalidScore when it is beyond what a float holds."""
    try:
        return math.fsum(values)
    except OverflowError:
        raise InvalidScore(f"the sum of {what} is beyond what a number can hold") from None


def as_score(result: object) -> Score:
    """What a reward function returned, as a `Score`: a number, a mapping of parts whose sum is the value, or a `Score`.

    Raises InvalidScore on anything else, on numbers that are not finite, and on an empty mapping.
    """
    if isinstance(result, Score):
        return result
    if isinstance(result, Mapping):
        if not result:
            raise InvalidScore("the mapping of reward parts is empty; return a number, or at least one part")
        parts = Score(0.0, result).parts
        return Score(exact_sum(parts.values(), "the parts"), parts)
    return Score(cast(float, result))


class Scorer(Protocol):
    """Scores finished episodes: an in-process plug-in or a verifier behind gRPC.

    `score` raises `EpisodeFailure` (REWARD_* or VERIFIER_* kinds, culprit named) when it cannot give a score. A scorer that has an
    attribute `max_concurrent` limits its own calls; of any other, the rubric limits how many run at once.
    """

    @property
    def name(self) -> str:
        """Name of the parts it adds: "<name>" for the value, "<name>.<part>" for each part."""
        ...

    async def score(self, episode: RewardInput) -> Score: ...


class GroupScorer(Protocol):
    """Scores all judged attempts at one task together, against each other.

    min_members: how many attempts it needs. `score_group` gives one result per episode, in order; a `Failure` fails that episode alone.
    It raises `EpisodeFailure` when it cannot score the group at all.
    """

    min_members: int

    @property
    def name(self) -> str:
        """Name of the parts it adds, as a `Scorer`'s."""
        ...

    async def score_group(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]: ...


def compares(scorer: Scorer | GroupScorer) -> TypeGuard[GroupScorer]:
    """Whether a scorer judges groups rather than single episodes."""
    return hasattr(scorer, "score_group")
