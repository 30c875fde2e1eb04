"""What `burnish env …` and `burnish rewards …` do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from burnish.config_errors import parse_arguments
from burnish.envs.check import check_environment as run_checks
from burnish.envs.check import render
from burnish.envs.contract import ENVS
from burnish.envs.registry import Listing, load_plugin
from burnish.envs.types import Message, Task
from burnish.model_commands import table_lines
from burnish.rewards.plugin import REWARDS, make_scorer
from burnish.rewards.types import RewardInput, Score

SAMPLE_EPISODE = RewardInput(
    episode_id="check/0",
    task=Task("check", 0),
    messages=(Message("user", "What is 3 + 4?"), Message("assistant", "7")),
    env_reward=1.0,
    env_parts={"correct": 1.0},
    metrics={"turns": 1.0, "tool_calls": 2.0, "cost": 3.0},
    data={"answer": 7},
)


def environment_lines(plugins: Sequence[Path]) -> list[str]:
    _load(plugins)
    return _listing(ENVS.list())


def reward_lines(plugins: Sequence[Path]) -> list[str]:
    _load(plugins)
    return _listing(REWARDS.list())


def check_environment(id: str, args: Sequence[str], plugins: Sequence[Path]) -> str:
    """The report of the conformance checks. Raises ValueError holding it when one failed."""
    _load(plugins)
    report = run_checks(id, parse_arguments(args))
    if not report.passed:
        raise ValueError(f"environment {id} does not keep the contract\n{render(report)}")
    return render(report)


def check_reward(id: str, args: Sequence[str], plugins: Sequence[Path]) -> str:
    """Score one made-up episode twice. Raises ValueError when the two scores differ, EpisodeFailure when the reward fails on it."""
    _load(plugins)
    scorer = make_scorer(id, params=parse_arguments(args))

    async def twice() -> tuple[Score, Score]:
        return await scorer.score(SAMPLE_EPISODE), await scorer.score(SAMPLE_EPISODE)

    first, second = asyncio.run(twice())
    if first != second:
        raise ValueError(f"reward {id} scored one episode {first.value:g} and then {second.value:g}; a reward must not vary between calls")
    parts = "".join(f", {scorer.name}.{name} {value:g}" for name, value in first.parts.items())
    return f"{id} works: {scorer.name} {first.value:g}{parts} on an episode with metrics {dict(SAMPLE_EPISODE.metrics)}"


def _load(plugins: Sequence[Path]) -> None:
    for plugin in plugins:
        load_plugin(plugin)


def _listing(rows: Sequence[Listing]) -> list[str]:
    return table_lines(("id", "from"), [(row.id, row.source) for row in rows])
