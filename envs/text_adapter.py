"""Ordinary Gymnasium environments as conversations: observations are described in words, actions are read out of the reply."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from .contract import Observation
from .spaces import MessagesSpace, UnicodeText
from .types import Message

MAX_DESCRIBED_NUMBERS = 256
MAX_REPLY_CHARS = 4096
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The reply holds no action. Example: `Unreadable("Answer with exactly one of: left, down, right, up.")`."""

    expected: str


Describe = Callable[[Any, gymnasium.Env[Any, Any]], str]
ReadAction = Callable[[str, gymnasium.Env[Any, Any]], Any]


class GymnasiumText(gymnasium.Env[Observation, str]):
    """An ordinary Gymnasium environment that a policy plays in text (`burnish/Gymnasium-v0`).

    env_id, env_kwargs: what `gymnasium.make` gets; env_kwargs may be a function of a seed, and the environment is then made anew at
    each reset. action_names: words for the actions of a Discrete space, in order. instructions: how the prompt begins; by default the
    environment's name and the reply expected. max_turns: replies per episode, unreadable ones included, before truncation.
    describe(observation, env) -> text and read_action(text, env) -> action or `Unreadable` replace the defaults, which know
    Discrete, Box, MultiDiscrete, MultiBinary, Text (and for observations Dict and Tuple) spaces.

    A reply without an action is answered with what was expected and does not step the environment. Metrics: `env_steps`,
    `unreadable_actions`. Raises ValueError when gymnasium cannot make the environment or a space needs a function of your own.

    Example: `GymnasiumText("FrozenLake-v1", {"is_slippery": False}, action_names=["left", "down", "right", "up"])`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def __init__(
        self,
        env_id: str = "FrozenLake-v1",
        env_kwargs: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
        *,
        action_names: Sequence[str] | None = None,
        instructions: str | None = None,
        max_turns: int = 100,
        describe: Describe | None = None,
        read_action: ReadAction | None = None,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"burnish/Gymnasium-v0: max_turns must be at least 1, not {max_turns}")
        self._env_id, self._env_kwargs, self._max_turns = env_id, env_kwargs or {}, max_turns
        if read_action is not None and action_names is not None:
            raise ValueError("burnish/Gymnasium-v0: action_names has no effect beside read_action; drop one of them")
        self._env = self._make(0)
        self._describe = describe or _default_describe(self._env)
        self._read_action = read_action or _default_reader(self._env, action_names)
        self._instructions = self._default_instructions() if instructions is None else instructions
        self._turns: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        inner_seed = int(self.np_random.integers(2**31))
        if callable(self._env_kwargs):
            self.close()
            self._env = self._make(inner_seed)
        observation, _ = self._env.reset(seed=inner_seed)
        self._turns = 0
        self._metrics = {"env_steps": 0.0, "unreadable_actions": 0.0}
        parts = (self._instructions, self._describe(observation, self._env))
        return (Message("user", "\n\n".join(part for part in parts if part)),), {"metrics": dict(self._metrics)}

    def step(self, action: str) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._turns is None:
            raise ResetNeeded(f"burnish/Gymnasium-v0 ({self._env_id}): the episode is over; call reset() before step()")
        self._turns += 1
        read = self._read_action(action, self._env)
        reward: SupportsFloat = 0.0
        terminated = truncated = False
        if isinstance(read, Unreadable):
            self._metrics["unreadable_actions"] += 1
            text = read.expected
        else:
            self._metrics["env_steps"] += 1
            observation, reward, terminated, truncated, _ = self._env.step(read)
            text = self._describe(observation, self._env)
        truncated = bool(truncated) or (not terminated and self._turns >= self._max_turns)
        if terminated or truncated:
            self._turns = None
        messages = () if self._turns is None else (Message("user", text),)
        return messages, reward, bool(terminated), truncated, {"metrics": dict(self._metrics)}

    def close(self) -> None:
        self._env.close()

    def _default_instructions(self) -> str:
        empty = self._read_action("", self._env)  # an empty reply holds no action: its answer says what is expected
        return f"This is {self._env_id}. {empty.expected}" if isinstance(empty, Unreadable) else f"This is {self._env_id}."

    def _make(self, seed: int) -> gymnasium.Env[Any, Any]:
        kwargs = self._env_kwargs(seed) if callable(self._env_kwargs) else self._env_kwargs
        try:
            return gymnasium.make(self._env_id, disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ValueError(f"burnish/Gymnasium-v0: gymnasium cannot make {self._env_id!r} with {dict(kwargs)}: {error}") from error


def describe_space(space: spaces.Space[Any], value: Any) -> str:
    """`value` of `space` in words. Example: `describe_space(Box(-1, 1, (2,)), np.array([0.5, -0.25]))` is "[0.5, -0.25]"."""
    match space:
        case spaces.Dict():
            return "\n".join(f"{key}: {describe_space(part, value[key])}" for key, part in space.spaces.items())
        case spaces.Tuple():
            return "\n".join(f"{i}: {describe_space(part, value[i])}" for i, part in enumerate(space.spaces))
        case spaces.Box() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return _numbers(np.asarray(value))
        case _:
            return str(value)


def _numbers(array: np.ndarray[Any, Any]) -> str:
    if array.ndim > 1:
        return "[" + ",\n ".join(_numbers(row) for row in array) + "]"
    if array.ndim == 0:
        return f"{array.item():.4g}" if array.dtype.kind == "f" else str(array.item())
    return "[" + ", ".join(_numbers(number) for number in array) + "]"


def read_choice(names: Sequence[str], start: int = 0) -> Callable[[str], int | Unreadable]:
    """Reads one of `names` (whole word, any case) as the action `start` + its index; the reply must mention exactly one of them."""
    words = [re.escape(name.casefold()) for name in sorted(names, key=len, reverse=True)]  # "up left" before "left"
    pattern = re.compile(rf"(?<![\w.+-])(?:{'|'.join(words)})(?!\w|\.\d)")
    index = {name.casefold(): start + i for i, name in enumerate(names)}
    listed = ", ".join(names) if len(names) <= 32 else f"{names[0]}, {names[1]}, …, {names[-1]}"
    expected = f"Answer with exactly one of: {listed}."

    def read(text: str) -> int | Unreadable:
        found = set(pattern.findall(text[-MAX_REPLY_CHARS:].casefold()))
        return index[found.pop()] if len(found) == 1 else Unreadable(expected)

    return read


def read_numbers(space: spaces.Space[Any]) -> Callable[[str], Any]:
    """Reads as many numbers as a Box, MultiDiscrete or MultiBinary action has; Unreadable unless they lie in the space."""
    shape = space.shape or ()
    dtype: np.dtype[Any] = np.dtype(space.dtype)
    count = math.prod(shape)
    whole = dtype.kind != "f"
    kind = "whole number" if whole else "number"
    bounds = f" between {_numbers(space.low)} and {_numbers(space.high)}" if isinstance(space, spaces.Box) else _choices(space)
    expected = f"Answer with {count} {kind}{'s' if count > 1 else ''}{bounds}."

    def read(text: str) -> Any:
        found = _NUMBER.findall(text[-MAX_REPLY_CHARS:])
        numbers = [float(number) for number in found] if len(found) == count else []
        limits: Any = np.iinfo(dtype) if whole else np.finfo(dtype)
        if not numbers or not all(limits.min <= n <= limits.max and (not whole or n.is_integer()) for n in numbers):
            return Unreadable(expected)
        action = np.array(numbers, dtype=dtype).reshape(shape)
        return action if space.contains(action) else Unreadable(expected)

    return read


def _choices(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.MultiDiscrete):
        return f", each from {_numbers(space.start)} to {_numbers(space.start + space.nvec - 1)}"
    return ", each 0 or 1"


def _default_describe(env: gymnasium.Env[Any, Any]) -> Describe:
    space = env.observation_space
    if (size := _size(space)) is None or size > MAX_DESCRIBED_NUMBERS:
        what = type(space).__name__ if size is None else f"{size} numbers"
        raise ValueError(f"burnish/Gymnasium-v0: an observation of {what} cannot be put in words; pass describe=(observation, env) -> text")
    return lambda observation, env: describe_space(env.observation_space, observation)


def _size(space: spaces.Space[Any]) -> int | None:
    """How many numbers a description holds, or None when the space is not one we know."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else list(space.spaces)
        sizes = [_size(part) for part in parts]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        return math.prod(space.shape or ())
    return 1 if isinstance(space, spaces.Discrete | spaces.Text | UnicodeText) else None


def _default_reader(env: gymnasium.Env[Any, Any], names: Sequence[str] | None) -> ReadAction:
    space = env.action_space
    read: Callable[[str], Any]
    if isinstance(space, spaces.Discrete):
        if names is not None and len({name.casefold() for name in names}) != int(space.n):
            raise ValueError(f"burnish/Gymnasium-v0: action_names needs {space.n} different names, not {list(names)}")
        start = int(space.start)
        read = read_choice(names or [str(start + i) for i in range(int(space.n))], start)
    elif names is not None:
        raise ValueError(f"burnish/Gymnasium-v0: action_names suits Discrete actions only, not {space}")
    elif isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        read = read_numbers(space)
    elif isinstance(space, spaces.Text | UnicodeText):
        read = lambda text: text if space.contains(text) else Unreadable(f"Answer with text of {space}.")  # noqa: E731
    else:
        raise ValueError(f"burnish/Gymnasium-v0: actions of {space} have no reader; pass read_action=(text, env) -> action")
    return lambda text, env: read(text)


def frozen_lake(size: int = 4, frozen_share: float = 0.8, is_slippery: bool = False, max_turns: int = 50) -> GymnasiumText:
    """`burnish/FrozenLake-v0`: cross a frozen lake, drawn anew from each seed, by answering left, down, right or up.

    size: rows and columns. frozen_share: chance that a square is ice and no hole; there is always a way. is_slippery: whether a move
    may slide sideways. The reward is gymnasium's: 1 at the goal, else 0.
    """
    if size < 2 or not 0 < frozen_share <= 1:
        raise ValueError(f"burnish/FrozenLake-v0: size must be at least 2 and frozen_share in (0, 1], not {size} and {frozen_share}")

    def draw(seed: int) -> dict[str, Any]:
        from gymnasium.envs.toy_text.frozen_lake import generate_random_map  # only this environment needs it

        return {"desc": generate_random_map(size, frozen_share, seed), "is_slippery": is_slippery}

    return GymnasiumText(
        "FrozenLake-v1",
        draw,
        action_names=["left", "down", "right", "up"],
        instructions="Cross the lake from S to G. P is you, F is ice, H is a hole. Answer with one move: left, down, right or up.",
        max_turns=max_turns,
        describe=_describe_lake,
    )


def _describe_lake(observation: Any, env: gymnasium.Env[Any, Any]) -> str:
    lake = [[square.decode() for square in row] for row in env.get_wrapper_attr("desc")]
    row, column = divmod(int(observation), len(lake[0]))
    lake[row][column] = "P"
    return "\n".join("".join(squares) for squares in lake)
