"""Reward plug-ins: a Python function over one finished episode, found by id.

A plug-in is a sync or async function decorated with `@reward`. What it returns is a number, a mapping of named parts (their sum is
the value), or a `Score`. What it raises, a hang, and a NaN are failures with the plug-in's id, never a reward of zero.

    @reward("my-team/short-answer-v1")
    def short_answer(episode: RewardInput, *, limit: int = 200) -> float:
        return 1.0 if len(episode.messages[-1].text) <= limit else 0.0
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ..envs.failures import EpisodeFailure, Failure, FailureKind, short_traceback
from ..envs.registry import ID_PATTERN, Registry, check_id, did_you_mean
from .types import InvalidScore, RewardInput, Score, Scorer

RewardFunction = Callable[..., Any]
F = TypeVar("F", bound=RewardFunction)

MAX_ABANDONED_THREADS = 16  # a thread cannot be stopped: past this many hung calls a plug-in fails at once instead of leaking more


@dataclass(frozen=True, slots=True)
class RewardPlugin:
    """A registered reward function. timeout_s: seconds one call may take."""

    id: str
    function: RewardFunction
    timeout_s: float


REWARDS: Registry[RewardPlugin] = Registry("reward", "burnish.rewards")


def reward(id: str, timeout_s: float = 10.0) -> Callable[[F], F]:
    """Register a sync or async function `f(episode: RewardInput, **params)` as the reward `id`; the function itself is unchanged.

    Parameters beyond the episode are the plug-in's options, given in the recipe. A sync function runs in a thread of its own, so it
    may block; an async one must not. Raises ValueError on a malformed id, a signature without an episode, or a timeout that is not
    positive.
    """
    check_id(id, "reward")
    if not timeout_s > 0:
        raise ValueError(f"reward {id!r}: timeout_s must be a positive number of seconds, not {timeout_s!r}")

    def register(function: F) -> F:
        _option_parameters(id, function)
        REWARDS.register(id, RewardPlugin(id, function, timeout_s), f"{function.__module__}:{function.__qualname__}")
        return function

    return register


def make_scorer(id: str, name: str | None = None, params: Mapping[str, Any] | None = None) -> Scorer:
    """The plug-in `id` with its options set, ready for a rubric. `name` defaults to the middle of the id.

    Raises ValueError when the id is unknown, an option is unknown, missing or of the wrong type.
    """
    plugin = REWARDS.get(id)
    if not isinstance(plugin, RewardPlugin):
        raise ValueError(
            f"reward {id!r} is a {type(plugin).__name__} without the @reward decorator; decorate the function its entry point names"
        )
    return PluginScorer(plugin, name or default_name(id), check_params(plugin, params or {}))


def default_name(id: str) -> str:
    """The middle of an id, dots as dashes. Example: `burnish/inspection-cost-v1` -> `inspection-cost`."""
    match = ID_PATTERN.match(id)
    assert match, f"{id!r} is no component id"
    return match["name"].replace(".", "-")


def check_params(plugin: RewardPlugin, params: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the function's annotations want them. Raises ValueError naming the plug-in and the option."""
    parameters = _option_parameters(plugin.id, plugin.function)
    for key in params:
        if key not in parameters:
            raise ValueError(f"reward {plugin.id!r} has no option {key!r}{did_you_mean(key, list(parameters))}")
    try:
        hints = get_type_hints(plugin.function, include_extras=True)
    except NameError as error:
        raise ValueError(f"reward {plugin.id!r}: an annotation has no type ({error}); import it outside TYPE_CHECKING") from error
    checked: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key in params:
            checked[key] = _check_option(plugin.id, key, hints.get(key, Any), params[key])
        elif parameter.default is parameter.empty:
            raise ValueError(f"reward {plugin.id!r} needs the option {key!r}")
    return checked


def _check_option(id: str, key: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"reward {id!r}, option {key!r}: {error.errors()[0]['msg']}, not {value!r}") from error


def _option_parameters(id: str, function: RewardFunction) -> dict[str, inspect.Parameter]:
    """The parameters that a recipe may set: all but the first, which is the episode."""
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise ValueError(f"reward {id!r}: the function must take the episode as its first parameter, def f(episode: RewardInput)")
    options = parameters[1:]
    for parameter in options:
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ValueError(f"reward {id!r}: option {parameter.name!r} must be a named parameter; options are checked by name")
    return {parameter.name: parameter for parameter in options}


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
        return Score(math.fsum(parts.values()), parts)
    return Score(cast(float, result))


class _Late(Exception):
    """The deadline passed; kept apart from a TimeoutError that the plug-in itself raises."""


class PluginScorer:
    """A reward plug-in as a `Scorer`: runs it under its deadline and turns whatever goes wrong into a typed failure."""

    def __init__(self, plugin: RewardPlugin, name: str, params: Mapping[str, Any]) -> None:
        self.name = name
        self._plugin = plugin
        self._function = partial(plugin.function, **params)
        self._is_async = inspect.iscoroutinefunction(plugin.function)
        self._abandoned: set[threading.Thread] = set()

    async def score(self, episode: RewardInput) -> Score:
        """Raises EpisodeFailure: REWARD_TIMEOUT, REWARD_ERROR or REWARD_INVALID with the plug-in's id as culprit."""
        try:
            return as_score(await (self._call_async(episode) if self._is_async else self._call_in_thread(episode)))
        except EpisodeFailure:
            raise
        except _Late as error:
            raise self._failure(FailureKind.REWARD_TIMEOUT, str(error)) from None
        except InvalidScore as error:
            raise self._failure(FailureKind.REWARD_INVALID, str(error)) from error
        except Exception as error:
            raise self._failure(FailureKind.REWARD_ERROR, short_traceback(error)) from error

    def _failure(self, kind: FailureKind, detail: str) -> EpisodeFailure:
        return EpisodeFailure(Failure(kind, self._plugin.id, detail))

    async def _call_async(self, episode: RewardInput) -> Any:
        task = asyncio.ensure_future(self._function(episode))
        task.add_done_callback(_retrieve)
        try:
            # asyncio.wait, not wait_for: a plug-in that swallows its cancellation must not hold the rollout.
            done, _ = await asyncio.wait({task}, timeout=self._plugin.timeout_s)
            if not done:
                raise _Late(f"no answer within {self._plugin.timeout_s:g} s")
            if task.cancelled():
                raise RuntimeError("the reward function cancelled itself")
            return task.result()
        finally:
            task.cancel()

    async def _call_in_thread(self, episode: RewardInput) -> Any:
        self._abandoned = {thread for thread in self._abandoned if thread.is_alive()}
        if len(self._abandoned) >= MAX_ABANDONED_THREADS:
            raise _Late(f"{len(self._abandoned)} earlier calls are still running past their deadline of {self._plugin.timeout_s:g} s")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[bool, Any]] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                outcome = (True, context.run(self._function, episode))
            except BaseException as error:  # SystemExit too: it would end this thread without an answer
                outcome = (False, error)
            with contextlib.suppress(RuntimeError):  # the loop may have closed since the deadline
                loop.call_soon_threadsafe(deliver, outcome)

        def deliver(outcome: tuple[bool, Any]) -> None:
            if not answer.done():
                answer.set_result(outcome)

        # A daemon thread per call: a hung one occupies no pool and does not keep the process alive.
        thread = threading.Thread(target=work, name=f"reward {self._plugin.id}", daemon=True)
        thread.start()
        try:
            done, _ = await asyncio.wait({answer}, timeout=self._plugin.timeout_s)
            if not done:
                raise _Late(f"no answer within {self._plugin.timeout_s:g} s")
        finally:
            if not answer.done():
                answer.cancel()
                self._abandoned.add(thread)
        ok, value = answer.result()
        if ok:
            return value
        if isinstance(value, Exception):
            raise value
        raise RuntimeError(f"the reward function raised {type(value).__name__}: {value}") from value


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Look at the result of an abandoned task, so that asyncio does not report it as forgotten."""
    if not task.cancelled():
        task.exception()
