"""The environment contract: a real `gymnasium.Env` whose observations are messages and whose actions are the policy's text.

    reset(seed=17, options={"task": task}) -> (messages, info)
    step("3 + 4 = 7") -> (messages, reward, terminated, truncated, info)

Messages are the new ones only. `reset` returns the prompt, at least one message; a step that ends the episode may return none, and so
may `reset` when the task came from a file with a prompt of its own (`Task.prompt`), which then precedes what `reset` returns.
`terminated` says the task is over, `truncated` that a limit of the environment was hit; both are rewarded as the environment says.
Whatever the policy writes is an ordinary observation or a reward, never an exception. `options` may hold "task" (a `Task`) and
"episode_id" (unique to this attempt, for tools and logs) and "tool_parser" (the id of the parser that fits the model's chat template, see
`tool_calls`); an environment is free to use none of them.

Keys of `info`, all optional, other keys are left alone:

    tools         at reset: OpenAI function schemas of the tools the policy may call
    reward_parts  str -> float, what this step's reward is made of; summed over the episode, as rewards are (see below)
    metrics       str -> float, numbers of the episode so far worth averaging in reports (tool_calls, cost)
    labels        str -> str, classes to compute recall over ("expected", "predicted")
    data          str -> JSON value, hidden truth for rewards and verifiers; laid over `Task.data`; the policy never sees it

A later value of a metric, label or datum replaces the earlier one.

A part that is not given with every step is declared: an attribute `reward_parts = ("won",)` of the environment names it, and it is 0 until
it is given. So an episode that a limit cut short, before the step that would have given it, has 0 of it instead of no such part.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar, overload

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from ..rpc.payload import MAX_DEPTH, plain_value
from .failures import EpisodeFailure, Failure, FailureKind, boundary, said_by, shown
from .registry import ID_PATTERN, Registry, check_id, did_you_mean
from .types import Message, Task, TextPart, ToolCall

Observation = tuple[Message, ...]
ConversationEnv: TypeAlias = gymnasium.Env[Observation, str]

INFO_KEYS = ("tools", "reward_parts", "metrics", "labels", "data")


class EnvFactory(Protocol):
    """Makes one fresh environment from a recipe's kwargs. An environment class is one."""

    def __call__(self, **kwargs: Any) -> ConversationEnv: ...


ENVS: Registry[EnvFactory] = Registry("environment", "burnish.envs")

F = TypeVar("F", bound=Callable[..., ConversationEnv])


@overload
def register_env(id: str, factory: F) -> F: ...
@overload
def register_env(id: str, factory: None = None) -> Callable[[F], F]: ...
def register_env(id: str, factory: F | None = None) -> F | Callable[[F], F]:
    """Register an environment with burnish and with gymnasium under the same id.

    factory: a class or function that returns an environment. Without it, this is a decorator:

        @register_env("my-team/Riddles-v0")
        class Riddles(gymnasium.Env): ...

    Raises ValueError on a malformed or taken id.
    """
    check_id(id, ENVS.kind)
    if factory is None:
        return lambda decorated: register_env(id, decorated)
    if not is_gymnasium_id(id):
        raise ValueError(f"environment id {id!r}: gymnasium allows no dot in the namespace; use a hyphen")
    target = _target(factory)
    ENVS.register(id, factory, source=target if isinstance(target, str) else factory.__module__)
    _register_with_gymnasium(id, target)
    return factory


def register_installed() -> None:
    """Make every environment that an installed distribution lists under `burnish.envs` known to gymnasium, by name only."""
    for entry in entry_points(group=ENVS.group):
        if is_gymnasium_id(entry.name):
            _register_with_gymnasium(entry.name, entry.value)


def is_gymnasium_id(id: str) -> bool:
    """Whether gymnasium takes this id; its namespaces hold no dot."""
    match = ID_PATTERN.match(id)
    return match is not None and "." not in match["namespace"]


def _register_with_gymnasium(id: str, target: str | Callable[..., Any]) -> None:
    gymnasium.registry.pop(id, None)  # a module that runs twice registers twice; gymnasium would warn
    gymnasium.register(id, entry_point=target)


def make_env(id: str, **kwargs: Any) -> ConversationEnv:
    """A fresh environment. Its `spec` records id and kwargs.

    Raises ValueError when the id is unknown, or a kwarg is unknown to the environment, missing or refused by it.

    Example: `make_env("burnish/Arithmetic-v0", max_operand=20)`.
    """
    factory = ENVS.get(id)
    _check_kwargs(id, factory, kwargs)
    env = factory(**kwargs)
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"environment {id!r}: its factory returned {type(env).__name__}, not a gymnasium.Env")
    if env.unwrapped.spec is None:
        env.unwrapped.spec = EnvSpec(id, _target(factory), order_enforce=False, disable_env_checker=True, kwargs=kwargs)
    return env


def check_env_args(id: str, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError where it is known beforehand that `make_env` would: the id or a kwarg is unknown or missing, or the factory has a
    `check_args` of its own, which takes the same kwargs, and that raises it."""
    factory = ENVS.get(id)
    _check_kwargs(id, factory, kwargs)
    check = getattr(factory, "check_args", None)
    if check is not None:
        check(**kwargs)


def unfit_tasks(id: str, tasks: Iterable[tuple[str, Task]]) -> list[str]:
    """What keeps tasks from being asked, as far as that is known before an episode: what the `check_task` of the environment's factory
    raises, if it has one, a line for each behind the name that the task is given with. Raises ValueError when the id is unknown."""
    check = getattr(ENVS.get(id), "check_task", None)
    if check is None:
        return []
    problems: list[str] = []
    for name, task in tasks:
        try:
            check(task)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def kwargs_of(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The kwargs that an environment's factory takes, by name, and whether it takes any others."""
    parameters = inspect.signature(factory).parameters
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check_kwargs(id: str, factory: EnvFactory, kwargs: Mapping[str, Any]) -> None:
    named, others = kwargs_of(factory)
    names = list(named)
    allowed = f"allowed are {', '.join(names)}" if names else "it takes none"
    if not others:
        for key in kwargs.keys() - set(names):
            close = did_you_mean(key, names) if names else ""
            hint = close if "did you mean" in close else ""
            raise ValueError(f"environment {id!r} has no kwarg {key!r}{hint} ({allowed})")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in kwargs]
    if missing:
        raise ValueError(f"environment {id!r} needs kwarg {missing[0]!r} ({allowed})")


def _target(factory: Callable[..., Any]) -> str | Callable[..., Any]:
    """`module:attribute` when the factory can be imported by that name (specs are then JSON), else the factory itself."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "<locals>")
    return f"{module}:{name}" if module not in (None, "__main__") and name.isidentifier() else factory


@dataclass(frozen=True, slots=True)
class StepInfo:
    """The keys of `info` that burnish reads, with their types checked (see the module's docstring).

    Example: `StepInfo.read({"reward_parts": {"correct": 1.0}}).reward_parts["correct"]` is 1.0.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> StepInfo:
        """Raises ValueError naming the key and value that break the contract."""
        if type(info) is dict and not info:  # nearly always, after a step
            return cls()
        if not isinstance(info, Mapping):
            raise ValueError(f"info must be a dict, not {type(info).__name__}")
        return cls(
            tools=_tools(info.get("tools", ())),
            reward_parts={key: _number(value, f'info["reward_parts"][{key!r}]') for key, value in _mapping(info, "reward_parts").items()},
            metrics={key: _number(value, f'info["metrics"][{key!r}]') for key, value in _mapping(info, "metrics").items()},
            labels={key: _label(value, key) for key, value in _mapping(info, "labels").items()},
            data={key: _held(value, f'info["data"][{key!r}]') for key, value in _mapping(info, "data").items()},
        )

    def then(self, later: StepInfo) -> StepInfo:
        """What the episode amounts to after one more step: reward parts add up, everything else is replaced by the later value."""
        names = {**self.reward_parts, **later.reward_parts}
        parts = {name: self.reward_parts.get(name, 0.0) + later.reward_parts.get(name, 0.0) for name in names}
        return StepInfo(
            tools=later.tools or self.tools,
            reward_parts=parts,
            metrics={**self.metrics, **later.metrics},
            labels={**self.labels, **later.labels},
            data={**self.data, **later.data},
        )


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of an environment, checked. Example: `StepResult((), 1.0, True, False, StepInfo())`."""

    messages: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: StepInfo


def reset_env(
    env: ConversationEnv, env_id: str, task: Task, episode_id: str | None = None, tool_parser: str | None = None
) -> tuple[Observation, StepInfo]:
    """Reset `env` for `task` and check what it returns. tool_parser: what reads calls as the model's chat template writes them.

    Raises EpisodeFailure ENV_ERROR naming `env_id` when the environment raises or breaks the contract.
    """
    given = {"task": task, "episode_id": episode_id, "tool_parser": tool_parser}
    options = {key: value for key, value in given.items() if value is not None}
    with boundary(FailureKind.ENV_ERROR, env_id):  # reading runs code of the environment's too: its mappings, numbers and properties
        messages, info = read_reset(env.reset(seed=task.seed, options=options), env_id, asked=bool(task.prompt))
        return messages, with_declared_parts(env, env_id, info)


def with_declared_parts(env: ConversationEnv, env_id: str, info: StepInfo) -> StepInfo:
    """What `reset` said, the reward parts that the environment declares at 0 where they are not given yet.

    Raises EpisodeFailure ENV_ERROR when the attribute `reward_parts` is no tuple or list of names.
    """
    declared = env.get_wrapper_attr("reward_parts") if env.has_wrapper_attr("reward_parts") else ()
    if not isinstance(declared, tuple | list) or not all(isinstance(name, str) for name in declared):
        _breach(env_id, f"its attribute reward_parts must be a tuple of names, not {shown(declared)}")
    return replace(info, reward_parts={**dict.fromkeys(declared, 0.0), **info.reward_parts}) if declared else info


def step_env(env: ConversationEnv, env_id: str, text: str) -> StepResult:
    """Step `env` with the policy's text and check what it returns. Raises EpisodeFailure ENV_ERROR as `reset_env` does."""
    with boundary(FailureKind.ENV_ERROR, env_id):
        return read_step(env.step(text), env_id)


def read_reset(result: Any, env_id: str, asked: bool = False) -> tuple[Observation, StepInfo]:
    """Check what `reset` returned. asked: the task brings a prompt of its own, so the environment need not add to it.

    Raises EpisodeFailure ENV_ERROR naming `env_id` and what is wrong.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        _breach(env_id, f"reset must return (messages, info), not {_shape(result)}")
    messages = _messages(result[0], "reset", env_id)
    if not messages and not asked:
        _breach(env_id, "reset returned no message; the policy needs something to answer")
    return messages, _info(result[1], "reset", env_id)


def read_step(result: Any, env_id: str) -> StepResult:
    """Check what `step` returned. Raises EpisodeFailure ENV_ERROR naming `env_id` and what is wrong."""
    if not isinstance(result, tuple) or len(result) != 5:
        _breach(env_id, f"step must return (messages, reward, terminated, truncated, info), not {_shape(result)}")
    messages = _messages(result[0], "step", env_id)
    flags = []
    for name, value in (("terminated", result[2]), ("truncated", result[3])):
        if type(value) is not bool and not isinstance(value, np.bool_):
            _breach(env_id, f"step: {name} must be a bool, not {shown(value)}")
        flags.append(bool(value))
    if "assistant" in [message.role for message in messages]:
        _breach(env_id, "step returned an assistant message; only the policy writes those")
    if not messages and not any(flags):
        _breach(env_id, "step returned no message though the episode goes on; the policy needs something to answer")
    try:
        reward = _number(result[1], "step: reward")
    except ValueError as error:
        _breach(env_id, str(error))
    return StepResult(messages, reward, flags[0], flags[1], _info(result[4], "step", env_id))


def _messages(value: Any, where: str, env_id: str) -> Observation:
    if not isinstance(value, tuple) or not all(isinstance(message, Message) for message in value):
        _breach(env_id, f"{where}: messages must be a tuple of Message, not {_shape(value)}")
    try:
        return tuple(_held_message(message, f"message {i}") for i, message in enumerate(value))
    except ValueError as error:
        _breach(env_id, f"{where}: {error}")


def _info(value: Any, where: str, env_id: str) -> StepInfo:
    try:
        return StepInfo.read(value)
    except ValueError as error:
        _breach(env_id, f"{where}: {error}")


def _breach(env_id: str, detail: str) -> NoReturn:
    raise EpisodeFailure(Failure(FailureKind.ENV_ERROR, env_id, f"breaks the environment contract: {detail}"))


def _mapping(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = info.get(key, {})
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f'info["{key}"] must be a dict with string keys, not {shown(value)}')
    return value


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError('info["tools"] must be a list of JSON schemas')
    return tuple(plain_value(tool, f'info["tools"][{i}]') for i, tool in enumerate(tools))


def _held_message(message: Message, where: str) -> Message:
    """The message, such that it can be rendered and stored. Raises ValueError naming what of it cannot."""
    content, calls = message.content, message.tool_calls
    texts = [part.text if isinstance(part, TextPart) else None for part in content] if isinstance(content, tuple) else [content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: content must be a string or a tuple of TextPart, not {shown(content)}")
    for key, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if not isinstance(value, str | None):
            raise ValueError(f"{where}: {key} must be a string, not {shown(value)}")
    if isinstance(calls, tuple) and not calls:  # nearly always
        return message
    if not isinstance(calls, tuple) or not all(isinstance(call, ToolCall) for call in calls):
        raise ValueError(f"{where}: tool_calls must be a tuple of ToolCall, not {shown(calls)}")
    return replace(message, tool_calls=tuple(_held_call(call, f"{where}: tool_calls[{i}]") for i, call in enumerate(calls)))


def _held_call(call: ToolCall, where: str) -> ToolCall:
    if not isinstance(call.id, str) or not isinstance(call.name, str) or not isinstance(call.arguments, Mapping):
        raise ValueError(f"{where} must have a string as id and name, and a dict of arguments, not {shown(call)}")
    return replace(call, arguments=plain_value(call.arguments, f"{where}.arguments"))


def _held(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of what an episode keeps, so that no later step changes it. Raises ValueError where it could not be written down."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where:.200} is nested more than {MAX_DEPTH} levels deep, or holds itself")
    if isinstance(value, Mapping):
        return {key: _held(item, f"{where}[{shown(key)}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_held(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if not isinstance(value, str | float | None):
        try:
            str(value)  # as which it is stored, where JSON has no word for it
        except Exception as error:
            raise ValueError(f"{where:.200} is a {type(value).__name__} that cannot be written as text: {said_by(error)}") from error
    return value


def _number(value: Any, where: str) -> float:
    if type(value) is float and math.isfinite(value):  # nearly always
        return value
    # numpy's scalars are numbers too; its bools, and Python's, are not
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    try:
        read = float(value) if number else math.nan
    except OverflowError:  # an integer beyond what a float holds
        read = math.inf
    if not math.isfinite(read):
        raise ValueError(f"{where} must be a finite number, not {shown(value)}")
    return read


def _label(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'info["labels"][{key!r}] must be a string, not {shown(value)}')
    return value


def _shape(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(item).__name__ for item in value[:6])})"
    return type(value).__name__
