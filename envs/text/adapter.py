"""Ordinary Gymnasium environments as conversations: observations are described in words, actions are read out of the reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium
from gymnasium.error import ResetNeeded

from ...rpc.urls import without_named_secrets
from ..contract import Observation
from ..named import load_function
from ..registry import look_here
from ..spaces import MessagesSpace, UnicodeText
from ..types import Message
from .spaces import ActionWords, Unreadable, action_words, describe_space, numbers_in

MAX_DESCRIBED_NUMBERS = 256
ID = "burnish/Gymnasium-v0"
VERSIONED = re.compile(r"-v\d+\Z")

NativeEnv = gymnasium.Env[Any, Any]
Describe = Callable[[Any, NativeEnv], str]
ReadAction = Callable[[str, NativeEnv], Any]
SayAction = Callable[[Any, NativeEnv], str]
EnvKwargs = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]
Success = float | Literal["terminated"]


class Seeded(gymnasium.Env[Any, Any]):
    """The ordinary environment below the text: `GymnasiumText` and `native_env()` play the same episode for the same seed.

    make: makes it from a seed, anew at each reset when `anew`. wrap: what observations and actions pass through, for `native_env()`.
    max_steps: steps until truncation, as many as the policy has replies.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance

    def __init__(self, make: Callable[[int], NativeEnv], anew: bool, max_steps: int, wrap: Callable[[NativeEnv], NativeEnv] | None) -> None:
        self._make, self._anew, self._max_steps = make, anew, max_steps
        self._wrap = wrap or (lambda env: env)
        self.env = self._wrap(make(0))
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        inner_seed = int(self.np_random.integers(2**31))
        if self._anew:
            self.env.close()
            self.env = self._wrap(self._make(inner_seed))
        self._steps = 0
        return self.env.reset(seed=inner_seed)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self._steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, bool(terminated), bool(truncated) or (not terminated and self._steps >= self._max_steps), info

    def close(self) -> None:
        self.env.close()


class GymnasiumText(gymnasium.Env[Observation, str]):
    """An ordinary Gymnasium environment that a policy plays in text (`burnish/Gymnasium-v0`).

    env_id, env_kwargs: what `gymnasium.make` gets; env_kwargs may be a function of a seed, and the environment is then made anew at
    each reset. action_names: words for the actions of a Discrete space, in order. instructions: how the prompt begins; by default the
    environment's name and the reply expected. max_turns: replies per episode, unreadable ones included, before truncation.
    describe(observation, env) -> text and read_action(text, env) -> action or `Unreadable` replace the defaults, which know spaces as
    `text_spaces` says; in a recipe they are named, `module:function` or `file.py:function`. say_action(action, env) -> text is the
    reverse of read_action; only demonstrations need it. success: the return from which an episode counts as a success, or
    "terminated"; it is then the reward part `success`, 0 or 1 (`env.success` in a recipe). native: a wrapper for `native_env()`, where
    what the text says is more than the environment's own observation.

    A reply without an action is answered with what was expected and does not step the environment. Metrics: `env_steps`,
    `unreadable_actions`. Raises ValueError when gymnasium cannot make the environment or a space needs a function of your own.

    Example: `GymnasiumText("FrozenLake-v1", {"is_slippery": False}, action_names=["left", "down", "right", "up"])`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def __init__(  # noqa: PLR0913  # what a recipe may say of an environment
        self,
        env_id: str = "FrozenLake-v1",
        env_kwargs: EnvKwargs | None = None,
        *,
        action_names: Sequence[str] | None = None,
        instructions: str | None = None,
        max_turns: int = 100,
        describe: Describe | str | None = None,
        read_action: ReadAction | str | None = None,
        say_action: SayAction | str | None = None,
        success: Success | None = None,
        native: Callable[[NativeEnv], NativeEnv] | None = None,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"{ID}: max_turns must be at least 1, not {max_turns}")
        if isinstance(success, str) and success != "terminated":
            raise ValueError(f'{ID}: success must be a return, such as 1.0, or "terminated", not {success!r}')
        if not VERSIONED.search(env_id):
            raise ValueError(f"{ID}: env_id {env_id!r} names no version, so it would be another one some day; write it as Name-v1")
        self._env_id, self._env_kwargs, self._max_turns = env_id, env_kwargs or {}, max_turns
        self._success, self._native = success, native
        self._world = Seeded(self._make, callable(self._env_kwargs), max_turns, None)
        self._describe: Describe = _function(describe, "describe") or _default_describe(self._env)
        self._read_action, self._say_action = self._speech(action_names, read_action, say_action)
        self._instructions = self._default_instructions() if instructions is None else instructions
        self._turns: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        observation, _ = self._world.reset(seed=seed)
        self._turns, self._return = 0, 0.0
        self._metrics = {"env_steps": 0.0, "unreadable_actions": 0.0}
        parts = (self._instructions, self._describe(observation, self._env))
        return (Message("user", "\n\n".join(part for part in parts if part)),), self._info(False, False)

    def step(self, action: str) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._turns is None:
            raise ResetNeeded(f"{ID} ({self._env_id}): the episode is over; call reset() before step()")
        self._turns += 1
        read = self._read_action(action, self._env)
        reward: SupportsFloat = 0.0
        terminated = truncated = False
        if isinstance(read, Unreadable):
            self._metrics["unreadable_actions"] += 1
            text = read.expected
        else:
            self._metrics["env_steps"] += 1
            observation, reward, terminated, truncated, _ = self._world.step(read)
            self._return += float(reward)
            text = self._describe(observation, self._env)
        truncated = truncated or (not terminated and self._turns >= self._max_turns)
        if terminated or truncated:
            self._turns = None
        messages = () if self._turns is None else (Message("user", text),)
        return messages, reward, terminated, truncated, self._info(terminated, terminated or truncated)

    def close(self) -> None:
        self._world.close()

    def native_env(self) -> Seeded:
        """The ordinary environment itself, a fresh one: the same tasks for the same seeds, and at most `max_turns` steps."""
        return Seeded(self._make, callable(self._env_kwargs), self._max_turns, self._native)

    def say(self, action: Any) -> str:
        """The reply that stands for an action. Raises ValueError when actions are read by a function of one's own that has no reverse."""
        return self._say_action(action, self._env)

    def succeeded(self, episode_return: float, terminated: bool) -> bool | None:
        """Whether an episode with this end counts as a success; None when nothing was said about success."""
        if self._success is None:
            return None
        return terminated if isinstance(self._success, str) else episode_return >= self._success

    @property
    def _env(self) -> NativeEnv:
        return self._world.env

    def _info(self, terminated: bool, over: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"metrics": dict(self._metrics)}
        if self._success is not None:
            info["reward_parts"] = {"success": float(over and bool(self.succeeded(self._return, terminated)))}
        return info

    def _speech(
        self, names: Sequence[str] | None, read: ReadAction | str | None, say: SayAction | str | None
    ) -> tuple[ReadAction, SayAction]:
        if read is not None:
            if names is not None:
                raise ValueError(f"{ID}: action_names has no effect beside read_action; drop one of them")
            own: ReadAction = _function(read, "read_action")
            return own, _function(say, "say_action") or _unsaid
        if say is not None:
            raise ValueError(f"{ID}: say_action is the reverse of a read_action of your own; give both or neither")
        words = _default_words(self._env, names)

        def default(text: str, env: NativeEnv) -> Any:
            action = words.read(text)
            return words.unreadable if action is None else action

        return default, lambda action, env: words.say(action)

    def _default_instructions(self) -> str:
        empty = self._read_action("", self._env)  # an empty reply holds no action: its answer says what is expected
        return f"This is {self._env_id}. {empty.expected}" if isinstance(empty, Unreadable) else f"This is {self._env_id}."

    def _make(self, seed: int) -> NativeEnv:
        kwargs = self._env_kwargs(seed) if callable(self._env_kwargs) else self._env_kwargs
        if ":" in self._env_id:
            look_here()
        try:
            return gymnasium.make(self._env_id, disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ValueError(f"{ID}: gymnasium cannot make {self._env_id!r} with {without_named_secrets(kwargs)}: {error}") from error


def _function(given: Callable[..., Any] | str | None, field: str) -> Any:
    return load_function(given, f"{ID}: {field}") if isinstance(given, str) else given


def _unsaid(action: Any, env: NativeEnv) -> str:
    raise ValueError(f"{ID}: actions are read by a function of your own; pass say_action=(action, env) -> text, its reverse, to write them")


def _default_describe(env: NativeEnv) -> Describe:
    space = env.observation_space
    if (size := numbers_in(space)) is None or size > MAX_DESCRIBED_NUMBERS:
        what = type(space).__name__ if size is None else f"{size} numbers"
        raise ValueError(f"{ID}: an observation of {what} cannot be put in words; pass describe=(observation, env) -> text")
    return lambda observation, env: describe_space(env.observation_space, observation)


def _default_words(env: NativeEnv, names: Sequence[str] | None) -> ActionWords:
    space = env.action_space
    if names is not None:
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise ValueError(f"{ID}: action_names suits Discrete actions only, not {space}")
        if len(names) != int(space.n) or len({name.casefold() for name in names}) != int(space.n):
            raise ValueError(f"{ID}: action_names needs {space.n} different names, not {list(names)}")
    words = action_words(space, names)
    if words is None:
        raise ValueError(f"{ID}: actions of {space} have no reader; pass read_action=(text, env) -> action")
    return words
