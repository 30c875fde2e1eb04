"""Everything that flows through burnish, as small frozen types.

An environment speaks in `Message`s. A rollout turns a conversation into token-level `Trajectory`s, never re-rendering what was
sampled. An `Episode` is one attempt at one `Task` and always ends in an `Outcome`: a `Reward` for what the policy caused, or a
`Failure` for what the infrastructure caused. A failure is never a reward of zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..rpc.payload import MAX_DEPTH, MAX_JSON_VALUES, deeper_than, more_values
from .failures import Failure

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TextPart:
    """One piece of text inside a message. Example: `TextPart("Inspect part 17.")`."""

    text: str


Content = str | tuple[TextPart, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One request by the policy to run a tool.

    Example: `ToolCall(id="call_0", name="measure", arguments={"part": 17, "feature": "bore"})`.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, in the OpenAI sense.

    Example: `Message("user", "Inspect part 17.")`.
    """

    role: Role
    content: Content
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"message role {self.role!r} is unknown; use one of {', '.join(ROLES)}")

    @property
    def text(self) -> str:
        """The text of the message, its parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def to_dict(self) -> dict[str, Any]:
        """The message as an OpenAI chat message (what chat templates and JSONL files take)."""
        out: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return out


@dataclass(frozen=True, slots=True)
class Task:
    """One problem to attempt. All G members of a group start from the same task and seed.

    `prompt` is set for tasks that come from a dataset; an environment that generates its tasks from `seed` leaves it empty.
    `data` travels unchanged to environment, rewards and verifiers (`reference_answer`, for example); the policy never sees it.
    `environment` names the one that plays it where several are blended, "" the recipe's own.

    Example: `Task(id="train-17", seed=17)`.
    """

    id: str
    seed: int
    prompt: tuple[Message, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""


StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy sampled in one call of the engine, T tokens.

    token_ids: int32 `[T]`, ending with the stop token when `stop_reason` is "stop".
    logprobs: float32 `[T]`, natural log of the probability each token was sampled with.
    policy_version: int32 `[T]`, the weight version that sampled each token.
    generate_s, env_s: seconds spent in the engine and in the environment's answer to this turn.
    env_reward: what the environment gave in that answer; 0 when there was none.

    Example: `Turn(np.array([5, 2], np.int32), np.array([-0.1, 0.0], np.float32), np.array([3, 3], np.int32), "stop", 0.2, 0.01)`.
    """

    token_ids: Int32
    logprobs: Float32
    policy_version: Int32
    stop_reason: StopReason
    generate_s: float = 0.0
    env_s: float = 0.0
    env_reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One token sequence exactly as the engine saw and produced it, N tokens in parallel arrays.

    token_ids: int32 `[N]`. trainable: bool `[N]`, True where the policy sampled the token.
    logprobs: float32 `[N]`, 0.0 where not trainable. policy_version: int32 `[N]`, -1 where not trainable.

    There is no prompt/completion split: the mask says what is trainable. Earlier turns are never re-tokenised.

    Example: a prompt of two tokens answered with one:
    `Trajectory(ids([1, 7, 2]), mask([0, 0, 1]), logprobs([0, 0, -0.3]), versions([-1, -1, 4]))`.
    """

    token_ids: Int32
    trainable: Bool
    logprobs: Float32
    policy_version: Int32

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        assert len(self.trainable) == len(self.logprobs) == len(self.policy_version) == n, "trajectory arrays differ in length"

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first trainable one (all N when nothing is trainable)."""
        first = np.flatnonzero(self.trainable)
        return int(first[0]) if len(first) else len(self)


@dataclass(frozen=True, slots=True)
class Reward:
    """What the episode was worth: the total that trains, and every part unweighted.

    turns: part -> its value for each turn, in the order of `Episode.turns`, of the parts that were judged turn by turn. credit: what each
    turn earned of the total, the weighted sum of those parts; the rest of the total was earned by the episode as a whole. size: of the
    terms that the total is the sum of, together, 0 where that is not known: rounding is a share of it, however small the sum.

    Example: `Reward(0.95, {"verdict": 1.0, "cost": -0.5}, turns={"cost": (-0.2, -0.3)}, credit=(-0.02, -0.03))`.
    """

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    credit: tuple[float, ...] = ()
    size: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        bad = [name for name, value in {"total": self.total, **self.parts}.items() if not math.isfinite(value)]
        bad += [f"turns of {name}" for name, values in self.turns.items() if not all(map(math.isfinite, values))]
        assert not bad, f"reward has non-finite values in {bad}; those are failures, not rewards"


Outcome = Reward | Failure

Truncation = Literal["max_turns", "max_tokens", "context", "time", "env"]
"""The limit that cut an episode short: turns; the tokens of the answer that ended it; the engine's context; the policy's seconds; or a
limit of the environment's own."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt (`sample` of G) at one task.

    Usually one trajectory; an agent that rewrites its history opens a further one whenever a call does not extend the previous.
    `truncation` is a limit the policy ran into: it is still rewarded. `metrics` are numbers worth averaging (turns, tool calls,
    cost). `labels` name classes to compute recall over: "expected" and "predicted". `engine` is the one that sampled it. `tools` are the
    schemas that the prompt described. `env_data` is what the environment put into `info["data"]`: hidden truth, for rewards. `actor` and
    `node` are Ray's ids of where it was played, "" outside of Ray.

    Example: `Episode(task, sample=0, trajectories=(trajectory,), messages=messages, outcome=Reward(1.0, {"env": 1.0}))`.
    """

    task: Task
    sample: int
    trajectories: tuple[Trajectory, ...]
    messages: tuple[Message, ...]
    outcome: Outcome
    turns: tuple[Turn, ...] = ()
    truncation: Truncation | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    env_data: Mapping[str, Any] = field(default_factory=dict)
    actor: str = ""
    node: str = ""

    @property
    def id(self) -> str:
        return f"{self.task.id}/{self.sample}"

    @property
    def reward(self) -> Reward | None:
        """The reward, or None when the episode failed."""
        return self.outcome if isinstance(self.outcome, Reward) else None

    @property
    def said(self) -> tuple[Message, ...]:
        """What the policy said, a message per turn: the last so many of the assistant, as its first may be the prompt's."""
        spoken = [message for message in self.messages if message.role == "assistant"]
        return tuple(spoken[len(spoken) - len(self.turns) :])


@dataclass(frozen=True, slots=True)
class EpisodeGroup:
    """The G episodes of one task, in sample order.

    comparable: False when too few of them were judged for a reward that compares them: their rewards lack that part, and the group must
    not train.

    Example: `EpisodeGroup(task, (episode_0, episode_1))`.
    """

    task: Task
    episodes: tuple[Episode, ...]
    comparable: bool = True

    def __post_init__(self) -> None:
        assert all(episode.task.id == self.task.id for episode in self.episodes), "a group holds episodes of one task"

    @property
    def rewarded(self) -> tuple[Episode, ...]:
        """The episodes that ended in a reward (the failed ones are masked)."""
        return tuple(episode for episode in self.episodes if episode.reward is not None)


MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")

_WRITE_INSTEAD = {
    "function_call": 'write tool_calls: [{"type": "function", "function": {"name": …, "arguments": …}}]',
    "functions": 'write tools: [{"type": "function", "function": {"name": …, "parameters": …}}]',
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        "write it into content, as the model's chat template has it (<think>…</think> before the answer)",
    ),
}
"""Keys of other dialects -> what is read instead."""


def refuse_unread(row: Mapping[str, Any], read: Collection[str], where: str = "") -> None:
    """Raise ValueError naming a key that is not among those `read`: what it says would be lost without a word.

    A key that says nothing (null, or empty) is as good as absent. `where` prefixes the key.
    """
    for key, value in row.items():
        if key not in read and value not in (None, "", [], {}):
            place = f"{where}: {key}" if where else str(key)
            remove = f"remove it (read are {', '.join(read)})"
            raise ValueError(f"{place} is not read; {_WRITE_INSTEAD.get(key, remove)}")


def check_arguments(rows: Iterable[Any], most: int, where: str) -> None:
    """Raise ValueError, which `where` begins, when the arguments of the tool calls of chat messages hold more than `most` values. As
    OpenAI has them they are JSON in a text, which counts as one value wherever the messages come from."""
    texts = [text for row in rows for text in _argument_texts(row)]
    if more_values(f"[{','.join(texts)}]", most):
        raise ValueError(f"{where}: function.arguments of the tool calls hold more than {most} JSON values")


def _argument_texts(row: Any) -> Iterator[str]:
    calls = row.get("tool_calls") if isinstance(row, Mapping) else None
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            yield arguments


def message_from_dict(row: Mapping[str, Any], where: str = "message") -> Message:
    """Read an OpenAI chat message; `where` prefixes the error. The role "developer" is a system message's.

    Raises ValueError naming the field that is wrong, or that is not read.
    """
    role, content = row.get("role"), row.get("content")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        hint = "; a function's answer has the role tool" if role == "function" else ""
        raise ValueError(f"{where}: role {role!r} is unknown; use one of {', '.join(ROLES)}{hint}")
    refuse_unread(row, MESSAGE_KEYS, where)
    rows = row.get("tool_calls") or ()
    if not isinstance(rows, list | tuple):
        raise ValueError(f"{where}: tool_calls must be a list, not {type(rows).__name__}")
    if content is None and rows:
        content = ""
    if isinstance(content, list | tuple):
        texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        bad = [part for part, text in zip(content, texts, strict=True) if not isinstance(text, str)]
        if bad:
            raise ValueError(f"{where}: content part {bad[0]!r} is not a text part")
        for i, part in enumerate(content):
            refuse_unread(part, ("type", "text"), f"{where}.content[{i}]")
        content = tuple(TextPart(str(text)) for text in texts)
    if content is None:
        raise ValueError(f"{where}: content is missing: a message says something, or calls tools")
    if not isinstance(content, (str, tuple)):
        raise ValueError(f"{where}: content must be a string or a list of text parts, not {type(content).__name__}")
    for key in ("tool_call_id", "name"):
        if not isinstance(row.get(key), str | None):
            raise ValueError(f"{where}: {key} must be a string, not {type(row[key]).__name__}")
    check_arguments((row,), MAX_JSON_VALUES, where)
    calls = tuple(_tool_call_from_dict(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(rows))
    return Message(role, content, calls, row.get("tool_call_id"), row.get("name"))


def _tool_call_from_dict(row: Any, where: str) -> ToolCall:
    function = row.get("function") if isinstance(row, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a tool call needs function.name")
    if row.get("type", "function") != "function":
        raise ValueError(f"{where}: type must be 'function', not {row['type']!r:.60}")
    refuse_unread(row, ("id", "type", "function", "index"), where)  # the index of a call is its place in the list
    refuse_unread(function, ("name", "arguments"), f"{where}.function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):  # OpenAI's own form
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: function.arguments is no JSON: {error}") from None
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: function.arguments must be an object, or one as JSON text, not {type(arguments).__name__}")
    arguments = dict(arguments)
    if deeper_than(arguments, MAX_DEPTH):
        raise ValueError(f"{where}: function.arguments are nested more than {MAX_DEPTH} levels deep")
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError) as error:  # NaN and 1e999 are read, and could not be written
        raise ValueError(f"{where}: function.arguments are no JSON: {error}") from None
    return ToolCall(str(row.get("id") or ""), function["name"], arguments)
