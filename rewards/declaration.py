"""What `@reward` declares: the function, what it is called with, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..envs.callables import doc_of
from ..envs.registry import did_you_mean

RewardFunction = Callable[..., Any]

Level = Literal["episode", "turn", "group", "batch"]
LEVELS: tuple[Level, ...] = get_args(Level)

Isolation = Literal["thread", "process"]
ISOLATIONS: tuple[Isolation, ...] = get_args(Isolation)

FIRST_PARAMETER: dict[str, str] = {
    "episode": "episode: RewardInput",
    "turn": "turn: TurnInput",
    "group": "episodes: Sequence[RewardInput]",
    "batch": "episodes: Sequence[RewardInput]",
}
"""What a function of each level is called with."""

CACHE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class RewardPlugin:
    """A registered reward function.

    level: what one call judges. timeout_s: seconds one call may take. max_concurrent: calls at once. cache: results kept for equal
    input, 0 for none. min_members: attempts that a group reward compares at least. max_batch, max_wait_s: how many episodes one call of
    a batched reward gets at most, and how many seconds the first of them waits for the others. isolation: whether a sync
    function runs in a thread, or in a process that is killed when a call is late.
    """

    id: str
    function: RewardFunction
    timeout_s: float
    level: Level = "episode"
    max_concurrent: int = 64
    cache: int = 0
    min_members: int = 2
    max_batch: int = 64
    max_wait_s: float = 0.05
    isolation: Isolation = "thread"

    @property
    def first_parameter(self) -> str:
        """How the function's first parameter reads."""
        return FIRST_PARAMETER[self.level]

    @property
    def doc(self) -> str:
        """The function's docstring, "" without one."""
        return doc_of(self.function)


def declare(
    id: str,
    function: RewardFunction,
    *,
    timeout_s: float,
    level: str,
    max_concurrent: int,
    cache: bool | int,
    isolation: str,
    own: dict[str, Any],
) -> RewardPlugin:
    """A plug-in from what `@reward` was given. own: the limits that belong to one level only, None where not given.

    Raises ValueError when a value makes no sense, or has no effect on this level.
    """
    known = [name for name in LEVELS if name == level]
    if not known:
        raise ValueError(f"reward {id!r}: level {level!r} is unknown{did_you_mean(str(level), list(LEVELS))}")
    belongs = {"min_members": "group", "max_batch": "batch", "max_wait_s": "batch"}
    given = {key: value for key, value in own.items() if value is not None}
    for key in given:
        if belongs[key] != level:
            raise ValueError(f"reward {id!r}: {key} has no effect on level {level!r}; it belongs to level {belongs[key]!r}")
    chosen = [name for name in ISOLATIONS if name == isolation]
    if not chosen:
        raise ValueError(f"reward {id!r}: isolation {isolation!r} is unknown{did_you_mean(str(isolation), list(ISOLATIONS))}")
    kept = CACHE_SIZE if cache is True else int(cache)
    plugin = RewardPlugin(id, function, timeout_s, known[0], max_concurrent, kept, isolation=chosen[0], **given)
    _check_limits(plugin)
    return plugin


def _check_limits(plugin: RewardPlugin) -> None:
    wrong = (
        (not plugin.timeout_s > 0, f"timeout_s must be a positive number of seconds, not {plugin.timeout_s!r}"),
        (plugin.max_concurrent < 1, f"max_concurrent must be at least 1, not {plugin.max_concurrent!r}"),
        (plugin.cache < 0, f"cache must be True, False, or the number of results to keep, not {plugin.cache!r}"),
        (plugin.min_members < 1, f"min_members must be at least 1, not {plugin.min_members!r}"),
        (plugin.max_batch < 1, f"max_batch must be at least 1, not {plugin.max_batch!r}"),
        (not plugin.max_wait_s >= 0, f"max_wait_s must be a number of seconds, 0 or more, not {plugin.max_wait_s!r}"),
    )
    for is_wrong, text in wrong:
        if is_wrong:
            raise ValueError(f"reward {plugin.id!r}: {text}")
