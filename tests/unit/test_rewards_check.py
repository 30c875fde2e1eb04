"""The conformance checker is content with what burnish brings along, and finds each thing a reward can get wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pydantic import BaseModel, PrivateAttr
from tests.unit.clock import pass_time

from burnish.envs.checks.environment import Check, Report, render
from burnish.rewards.checks.reward import CHECKS, SCORE_CHECKS, check_reward, sample_episodes
from burnish.rewards.plugin import REWARDS, reward
from burnish.rewards.types import RewardInput, TurnInput

pytestmark = pytest.mark.unit

ID = "test/checked-v1"
BUILT_IN = sorted(listing.id for listing in REWARDS.list() if listing.id == "burnish/inspection-cost-v1")


@pytest.fixture
def check() -> Iterator[Callable[..., Report]]:
    def run(function: Callable[..., Any], level: str = "episode", params: dict[str, Any] | None = None, **declared: Any) -> Report:
        REWARDS._loaded.pop(ID, None)
        reward(ID, level=level, **{"timeout_s": 5.0, **declared})(function)  # type: ignore[arg-type]
        return check_reward(ID, params, deadline_s=60.0)

    yield run
    REWARDS._loaded.pop(ID, None)
    REWARDS._sources.pop(ID, None)


def found(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def failed(report: Report) -> list[str]:
    return [check.name for check in report.checks if check.status == "fail"]


@pytest.mark.parametrize("id", BUILT_IN)
def test_every_built_in_reward_keeps_the_contract(id: str) -> None:
    report = check_reward(id)
    assert report.passed, render(report)
    assert [check.name for check in report.checks] == [*CHECKS, *SCORE_CHECKS]
    assert set(report.latency_ms) == {f"call p{q}" for q in (50, 95, 99)}


async def async_length(episode: RewardInput) -> float:
    await asyncio.sleep(0)
    return float(len(episode.answer or ""))


def turn_length(turn: TurnInput) -> float:
    return float(len(turn.message.text))


def ranks(episodes: Sequence[RewardInput]) -> list[float]:
    lengths = [len(one.answer or "") for one in episodes]
    return [float(sum(other < mine for other in lengths)) for mine in lengths]


def batch_length(episodes: Sequence[RewardInput]) -> list[float]:
    return [float(len(one.answer or "")) for one in episodes]


@pytest.mark.parametrize(
    ("function", "level"), [(async_length, "episode"), (turn_length, "turn"), (ranks, "group"), (batch_length, "batch")]
)
@pytest.mark.parametrize("cache", [False, True])
def test_sound_rewards_of_every_level_pass(check: Any, function: Any, level: str, cache: bool) -> None:
    report = check(function, level, cache=cache)
    assert report.passed, render(report)
    assert (found(report, "order").status == "pass") == (level == "group")


def test_chance_is_found_even_behind_a_cache(check: Any) -> None:
    report = check(lambda episode: random.random(), cache=True)
    assert "determinism" in failed(report)
    assert "a reward must not vary between calls" in found(report, "determinism").detail
    assert report.latency_ms == {}


def test_a_reward_that_changes_the_episode_is_found(check: Any) -> None:
    def spoils(episode: RewardInput) -> float:
        episode.data.pop("answer", None)  # type: ignore[attr-defined]
        return 1.0

    assert "input untouched" in failed(check(spoils))


def test_shared_state_is_found(check: Any) -> None:
    current: list[str] = [""]

    def remembers(episode: RewardInput) -> float:
        current[0] = episode.answer or ""
        time.sleep(0.02)  # long enough for another call to come between
        return float(len(current[0]))

    report = check(remembers)
    assert "concurrent calls" in failed(report), render(report)


def test_a_ranking_that_depends_on_the_order_is_found(check: Any) -> None:
    report = check(lambda episodes: [float(i) for i in range(len(episodes))], "group")
    assert failed(report) == ["order"]


def test_hostile_episodes_may_fail_with_a_type_but_must_be_in_time(check: Any) -> None:
    def fragile(episode: RewardInput) -> float:
        return 1.0 / len(episode.answer or "")

    report = check(fragile)
    assert report.passed
    assert "ZeroDivisionError" in found(report, "hostile episodes").detail
    assert "masked, neither rewarded nor punished" in found(report, "hostile episodes").detail

    release = threading.Event()

    def slow_on_long(episode: RewardInput) -> float:
        if len(episode.answer or "") >= 10_000:
            pass_time(60)
            release.wait(30)
        return 1.0

    report = check(slow_on_long, timeout_s=60)
    release.set()
    assert failed(report) == ["hostile episodes"]
    assert "no answer within 60 s" in found(report, "hostile episodes").detail


def test_a_reward_for_other_data_wants_a_sample(check: Any) -> None:
    def needs(episode: RewardInput) -> float:
        return float(episode.data["gold"])

    report = check(needs)
    assert (found(report, "scores").status, report.verdict) == ("need", "needs a sample"), "it may be right"
    assert failed(report) == [] and not report.passed
    assert "KeyError: 'gold'" in found(report, "scores").detail and "--sample FILE.jsonl" in found(report, "scores").detail
    episodes = [RewardInput("a", one.task, one.messages, 0.0, data={"gold": 0.5}) for one in sample_episodes(2)]
    assert check_reward(ID, episodes=episodes).passed


class Unsendable(BaseModel):
    scale: float = 1.0
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


def test_options_that_cannot_travel_are_found(check: Any) -> None:
    def scaled(episode: RewardInput, *, options: Unsendable) -> float:
        return options.scale

    report = check(scaled)
    assert failed(report) == ["options"]
    assert "cannot be sent to another process" in found(report, "options").detail
    assert check_reward("burnish/inspection-cost-v1", {"cap": 2.0}).passed
    with pytest.raises(ValueError, match="no option 'kap'"):
        check_reward("burnish/inspection-cost-v1", {"kap": 2.0})


def test_a_group_reward_needs_a_group_to_be_checked(check: Any) -> None:
    check(ranks, "group", min_members=3)
    with pytest.raises(ValueError, match="compares at least 3 attempts at one task"):
        check_reward(ID, episodes=sample_episodes(2))


def test_a_function_that_never_ends_does_not_hold_the_check(check: Any) -> None:
    async def stubborn(episode: RewardInput) -> float:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return 1.0

    over = threading.Event()
    reward(ID, timeout_s=0.05)(stubborn)
    report = check_reward(ID, deadline_s=0.3)
    over.set()
    assert "no end after 0.3 s" in found(report, "scores").detail
