"""Reward plug-ins: a Python function over finished episodes, found by id.

A plug-in is a sync or async function decorated with `@reward`. What it returns is a number, a mapping of named parts (their sum is
the value), or a `Score`. What it raises, a hang, and a NaN are failures with the plug-in's id, never a reward of zero.

    @reward("my-team/short-answer-v1")
    def short_answer(episode: RewardInput, *, limit: int = 200) -> float:
        return 1.0 if episode.answer is not None and len(episode.answer) <= limit else 0.0

A level says what one call judges: an episode, one turn of it (`level="turn"`), all attempts at one task against each other ("group"),
or whatever is ready together ("batch").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..envs.callables import source_of
from ..envs.registry import ID_PATTERN, Registry, check_id
from .calling.caller import MAX_ABANDONED_THREADS
from .calling.processes import reference
from .calling.scorers import PluginGroupScorer, scorer_for
from .declaration import Isolation, Level, RewardFunction, RewardPlugin, declare
from .options import check_options, option_parameters
from .types import GroupScorer, Scorer, as_score

__all__ = [
    "MAX_ABANDONED_THREADS",
    "REWARDS",
    "RewardPlugin",
    "as_score",
    "check_params",
    "default_name",
    "find_plugin",
    "make_group_scorer",
    "make_scorer",
    "reward",
]

F = TypeVar("F", bound=RewardFunction)

REWARDS: Registry[RewardPlugin] = Registry("reward", "burnish.rewards")


def reward(  # noqa: PLR0913  # the limits of a reward
    id: str,
    timeout_s: float = 10.0,
    *,
    level: Level = "episode",
    max_concurrent: int = 64,
    cache: bool | int = False,
    min_members: int | None = None,
    max_batch: int | None = None,
    max_wait_s: float | None = None,
    isolation: Isolation = "thread",
) -> Callable[[F], F]:
    """Register a sync or async function as the reward `id`; the function itself is unchanged. What it is called with, by level:

        "episode"  f(episode: RewardInput) -> result
        "turn"     f(turn: TurnInput) -> result, once per turn; the value of the episode is their sum, and each turn's is recorded
        "group"    f(episodes: Sequence[RewardInput]) -> one result per episode: all judged attempts at one task together, given to it
                   when there are at least min_members (2)
        "batch"    f(episodes: Sequence[RewardInput]) -> one result per episode: whatever is ready together, at most max_batch (64),
                   waiting at most max_wait_s (0.05) for more

    Parameters beyond the first are the plug-in's options, given in the recipe; a single one, `options`, annotated with a pydantic model
    takes them as that model. A sync function runs in a thread, so it may block; an async one must not. timeout_s: seconds one call may
    take. max_concurrent: calls at once in each process that scores. cache: score equal input once, keeping 1024 results, or as many as
    given. isolation: "process" runs a sync function in worker processes (one per core, two at least, max_concurrent at most) that are
    killed when a call is late: for what may hang, or hold the GIL as a regular expression that backtracks does.

    Raises ValueError on a malformed id, a signature that does not fit the level, a limit that makes no sense or has no effect, or a
    function that worker processes cannot have.
    """
    check_id(id, "reward")
    own = {"min_members": min_members, "max_batch": max_batch, "max_wait_s": max_wait_s}

    def plugin_of(function: RewardFunction) -> RewardPlugin:
        return declare(
            id, function, timeout_s=timeout_s, level=level, max_concurrent=max_concurrent, cache=cache, isolation=isolation, own=own
        )

    plugin_of(reward)  # limits that make no sense are the decorator's mistake, whatever it is put on

    def register(function: F) -> F:
        plugin = plugin_of(function)
        option_parameters(f"reward {id!r}", function, plugin.first_parameter)
        if isolation == "process":
            reference("reward", id, function)
        REWARDS.register(id, plugin, source_of(function))
        return function

    return register


def find_plugin(id: str) -> RewardPlugin:
    """The plug-in `id`. Raises ValueError when it is unknown, or what is registered was not made with `@reward`."""
    plugin = REWARDS.get(id)
    if not isinstance(plugin, RewardPlugin):
        raise ValueError(
            f"reward {id!r} is a {type(plugin).__name__} without the @reward decorator; decorate the function its entry point names"
        )
    return plugin


def make_scorer(id: str, name: str | None = None, params: Mapping[str, Any] | None = None) -> Scorer:
    """The plug-in `id` with its options set, ready for a rubric. `name` defaults to the middle of the id.

    Raises ValueError when the id is unknown, an option is unknown, missing or of the wrong type, or the plug-in compares groups
    (`make_group_scorer`).
    """
    plugin = find_plugin(id)
    options = check_params(plugin, params or {})
    if plugin.level == "group":
        raise ValueError(f"reward {id!r} has level 'group': it compares attempts with each other and cannot judge one alone")
    return scorer_for(plugin, name or default_name(id), options)


def make_group_scorer(id: str, name: str | None = None, params: Mapping[str, Any] | None = None) -> GroupScorer:
    """The group plug-in `id`, as `make_scorer` makes the others. Raises ValueError when its level is another."""
    plugin = find_plugin(id)
    if plugin.level != "group":
        raise ValueError(f"reward {id!r} has level {plugin.level!r}, not 'group'")
    return PluginGroupScorer(plugin, name or default_name(id), check_params(plugin, params or {}))


def default_name(id: str) -> str:
    """The middle of an id, dots as dashes. Example: `burnish/inspection-cost-v1` -> `inspection-cost`."""
    match = ID_PATTERN.match(id)
    assert match, f"{id!r} is no component id"
    return match["name"].replace(".", "-")


def check_params(plugin: RewardPlugin, params: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the function's annotations want them. Raises ValueError naming the plug-in and the option."""
    return check_options(f"reward {plugin.id!r}", plugin.function, plugin.first_parameter, params)
