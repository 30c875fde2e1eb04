"""Reward plug-ins: what they may return, and what becomes of everything else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from tests.unit.clock import patient_loop

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Message, Task
from burnish.rewards.builtin import costs  # noqa: F401  (registers the built-in cost reward)
from burnish.rewards.plugin import MAX_ABANDONED_THREADS, REWARDS, RewardPlugin, as_score, make_scorer, reward
from burnish.rewards.types import InvalidScore, RewardInput, Score

pytestmark = pytest.mark.unit


def episode(**changes: Any) -> RewardInput:
    task = Task("train-17", 17)
    given: dict[str, Any] = {"episode_id": "train-17/0", "task": task, "messages": (Message("assistant", "scrap"),), "env_reward": 0.0}
    return RewardInput(**{**given, **changes})


@pytest.fixture
def plugin() -> Any:
    """Registers a function under a test id and returns its scorer; forgets it afterwards."""
    added: list[str] = []

    def make(function: Callable[..., Any], timeout_s: float = 5.0, params: Mapping[str, Any] | None = None) -> Any:
        id = f"test/reward{len(added)}-v1"
        reward(id, timeout_s=timeout_s)(function)
        added.append(id)
        return make_scorer(id, params=params)

    yield make
    for id in added:
        REWARDS._loaded.pop(id)
        REWARDS._sources.pop(id)


async def failure_of(scorer: Any) -> Failure:
    with pytest.raises(EpisodeFailure) as caught:
        await scorer.score(episode())
    return caught.value.failure


@pytest.mark.parametrize(
    ("returned", "value", "parts"),
    [
        (0.25, 0.25, {}),
        (1, 1.0, {}),
        (True, 1.0, {}),
        (np.float32(0.5), 0.5, {}),
        ({"reason": 0.25, "verdict": 0.5}, 0.75, {"reason": 0.25, "verdict": 0.5}),
        (Score(1.0, {"reason": 0.0}), 1.0, {"reason": 0.0}),
    ],
)
def test_what_a_reward_may_return(returned: object, value: float, parts: dict[str, float]) -> None:
    score = as_score(returned)
    assert (score.value, score.parts) == (value, parts)
    assert type(score.value) is float, "numpy numbers become floats that JSON can hold"


@pytest.mark.parametrize("returned", [float("nan"), float("inf"), None, "1.0", [1.0], {}, {"a": float("nan")}, {"a": "x"}, 1j, np.zeros(2)])
def test_what_is_no_score(returned: object) -> None:
    with pytest.raises(InvalidScore):
        as_score(returned)


def test_labels_must_be_strings() -> None:
    with pytest.raises(InvalidScore, match="'expected'"):
        Score(1.0, labels={"expected": 3})  # type: ignore[dict-item]


def test_parts_and_labels_must_be_mappings_even_when_empty() -> None:
    with pytest.raises(InvalidScore, match="parts of the score must be a mapping, not NoneType"):
        Score(1.0, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidScore, match="labels of the score must be a mapping, not list"):
        Score(1.0, labels=[])  # type: ignore[arg-type]


async def test_sync_runs_in_a_thread_and_async_on_the_loop(plugin: Any) -> None:
    threads: list[threading.Thread] = []

    def blocking(_: RewardInput) -> float:
        threads.append(threading.current_thread())
        return 0.5

    async def awaited(_: RewardInput) -> float:
        await asyncio.sleep(0)
        threads.append(threading.current_thread())
        return 0.25

    assert (await plugin(blocking).score(episode())).value == 0.5
    assert (await plugin(awaited).score(episode())).value == 0.25
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon, "a hung reward must not keep the process alive"
    assert threads[1] is threading.main_thread()


async def test_an_exception_is_a_failure_with_the_plugin_and_the_line(plugin: Any) -> None:
    def broken(_: RewardInput) -> float:
        raise KeyError("reference_answer")

    failure = await failure_of(plugin(broken))
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_ERROR, "test/reward0-v1")
    assert "KeyError: 'reference_answer'" in failure.detail
    assert "test_rewards_plugin.py" in failure.detail
    assert "in broken" in failure.detail


async def test_leaving_the_interpreter_is_a_failure_too(plugin: Any) -> None:
    def leaves(_: RewardInput) -> float:
        raise SystemExit(3)

    def stops(_: RewardInput) -> float:
        raise StopIteration

    assert "SystemExit: 3" in (await failure_of(plugin(leaves))).detail
    assert (await failure_of(plugin(stops))).kind is FailureKind.REWARD_ERROR


async def test_the_plugins_own_timeout_error_is_an_error_not_our_deadline(plugin: Any) -> None:
    async def impatient(_: RewardInput) -> float:
        raise TimeoutError("database")

    assert (await failure_of(plugin(impatient))).kind is FailureKind.REWARD_ERROR


async def test_a_typed_failure_keeps_its_own_attribution(plugin: Any) -> None:
    def typed(_: RewardInput) -> float:
        raise EpisodeFailure(Failure(FailureKind.TOOL_ERROR, "gauge", "disconnected"))

    assert await failure_of(plugin(typed)) == Failure(FailureKind.TOOL_ERROR, "gauge", "disconnected")


@pytest.mark.parametrize("make", [lambda: float("nan"), lambda: Score(float("inf")), lambda: None])
async def test_an_invalid_score_is_typed(plugin: Any, make: Callable[[], Any]) -> None:
    failure = await failure_of(plugin(lambda _: make()))
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_INVALID, "test/reward0-v1")
    assert "must be a finite number" in failure.detail


async def test_a_hung_sync_reward_times_out_and_later_calls_stop_leaking_threads(plugin: Any) -> None:
    release, calls, loop = threading.Event(), [], patient_loop()

    def hangs(_: RewardInput) -> float:
        calls.append(1)
        loop.pass_time(60)
        release.wait(30)
        return 1.0

    scorer = plugin(hangs, timeout_s=60)
    for _ in range(MAX_ABANDONED_THREADS):
        failure = await failure_of(scorer)
        assert failure.kind is FailureKind.REWARD_TIMEOUT
        assert failure.detail.startswith("task train-17: no answer within 60 s\n  at ")
    assert "still running" in (await failure_of(scorer)).detail
    assert len(calls) == MAX_ABANDONED_THREADS
    release.set()


async def test_a_hung_async_reward_times_out_even_when_it_ignores_cancellation(plugin: Any) -> None:
    release, loop = asyncio.Event(), patient_loop()

    async def stubborn(_: RewardInput) -> float:
        loop.pass_time(60)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return 1.0

    assert (await failure_of(plugin(stubborn, timeout_s=60))).kind is FailureKind.REWARD_TIMEOUT
    release.set()
    await asyncio.sleep(0)


async def test_cancelling_the_rollout_cancels_the_reward(plugin: Any) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(_: RewardInput) -> float:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 1.0

    task = asyncio.create_task(plugin(slow).score(episode()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 5)


async def test_options_reach_the_function(plugin: Any) -> None:
    def priced(episode: RewardInput, per_unit: float, *, cap: float = 1.0) -> float:
        return min(cap, per_unit * episode.env_reward)

    assert (await plugin(priced, params={"per_unit": 2}).score(episode(env_reward=0.25))).value == 0.5


def test_an_option_that_is_a_boolean_takes_no_word_for_one(plugin: Any) -> None:
    def strict(_: RewardInput, *, exact: bool = False) -> float:
        return float(exact)

    plugin(strict, params={"exact": True})
    with pytest.raises(ValueError, match=r"option 'exact': must be true or false, not 'yes'"):
        make_scorer("test/reward0-v1", params={"exact": "yes"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"maybe": "no"}, "option 'maybe': must be true or false, not 'no'"),
        ({"maybe": 1}, "option 'maybe': must be true or false, not 1"),
        ({"each": [True, "yes"]}, "option 'each': must be true or false, not 'yes'"),
        ({"each": [0]}, "option 'each': must be true or false, not 0"),
        ({"count": True}, "option 'count': must be an integer, not True"),
        ({"count": "20"}, "option 'count': must be an integer, not '20'"),
        ({"share": True}, "option 'share': must be a number, not True"),
        ({"by_name": {"a": "0.5"}}, r"option 'by_name\.a': must be a number, not '0.5'"),
    ],
)
@pytest.mark.parametrize("form", ["parameters", "model"])
def test_no_option_is_made_of_what_is_none(plugin: Any, form: str, given: dict[str, Any], says: str) -> None:
    class Options(BaseModel):
        maybe: bool | None = None
        each: tuple[bool, ...] = ()
        count: int = 1
        share: float = 0.5
        by_name: dict[str, float] | None = None

    def by_parameters(
        _: RewardInput,
        *,
        maybe: bool | None = None,
        each: tuple[bool, ...] = (),
        count: int = 1,
        share: float = 0.5,
        by_name: dict[str, float] | None = None,
    ) -> float:
        return 1.0

    def by_model(_: RewardInput, *, options: Options) -> float:
        return 1.0

    by_model.__annotations__["options"] = Options
    plugin(
        by_parameters if form == "parameters" else by_model,
        params={"maybe": None, "each": [True], "count": 2, "share": 1, "by_name": {"a": 1}},
    )
    with pytest.raises(ValueError, match=says):
        make_scorer("test/reward0-v1", params=given)


def test_options_are_checked_at_start(plugin: Any) -> None:
    def priced(_: RewardInput, *, per_unit: float) -> float:
        return per_unit

    with pytest.raises(ValueError, match=r"no option 'per_unt'; did you mean 'per_unit'\?"):
        plugin(priced, params={"per_unt": 1.0})
    with pytest.raises(ValueError, match="needs the option 'per_unit'"):
        make_scorer("test/reward0-v1", params={})
    with pytest.raises(ValueError, match=r"option 'per_unit': .*number.*, not 'cheap'"):
        make_scorer("test/reward0-v1", params={"per_unit": "cheap"})
    with pytest.raises(ValueError, match="did you mean 'test/reward0-v1'"):
        make_scorer("test/reward00-v1")


def test_signatures_and_ids_are_checked_when_registered() -> None:
    with pytest.raises(ValueError, match="must read namespace/name-vN"):
        reward("length")
    with pytest.raises(ValueError, match="positive number of seconds"):
        reward("test/x-v1", timeout_s=0.0)
    with pytest.raises(ValueError, match="episode as its first parameter"):
        reward("test/x-v1")(lambda: 1.0)
    with pytest.raises(ValueError, match="'options' must be a named parameter"):
        reward("test/x-v1")(lambda episode, **options: 1.0)


def test_the_name_is_the_middle_of_the_id_unless_given() -> None:
    assert make_scorer("burnish/inspection-cost-v1").name == "inspection-cost"
    assert make_scorer("burnish/inspection-cost-v1", name="cost").name == "cost"


def test_an_entry_point_without_the_decorator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS._loaded, "test/bare-v1", len)
    with pytest.raises(ValueError, match="without the @reward decorator"):
        make_scorer("test/bare-v1")
    assert isinstance(REWARDS.get("burnish/inspection-cost-v1"), RewardPlugin)


@pytest.mark.parametrize(
    ("metrics", "params", "value"),
    [
        ({"cost": 3.0, "tool_calls": 9.0}, {}, -0.3),
        ({"tool_calls": 4.0}, {"per_unit": 0.25}, -1.0),
        ({"cost": 50.0}, {"per_unit": 0.1, "cap": 2.0}, -2.0),
        ({"cost": 0.0}, {}, 0.0),
    ],
)
async def test_inspection_cost(metrics: dict[str, float], params: dict[str, float], value: float) -> None:
    score = await make_scorer("burnish/inspection-cost-v1", params=params).score(episode(metrics=metrics))
    assert score.value == pytest.approx(value)


async def test_inspection_cost_needs_a_cost_and_sane_options() -> None:
    failure = await failure_of(make_scorer("burnish/inspection-cost-v1"))
    assert failure.kind is FailureKind.REWARD_ERROR
    assert "neither 'cost' nor 'tool_calls'" in failure.detail
    with pytest.raises(ValueError, match="option 'cap'"):
        make_scorer("burnish/inspection-cost-v1", params={"cap": -1.0})


async def test_a_partial_is_a_reward_with_the_options_that_are_left(plugin: Any) -> None:
    def length(episode: RewardInput, *, limit: int, scale: float = 1.0) -> float:
        """How long."""
        return min(limit, len(episode.messages[-1].text)) * scale

    assert (await plugin(partial(length, limit=3)).score(episode())).value == 3.0
    assert (await plugin(partial(length, limit=3), params={"scale": 2}).score(episode())).value == 6.0
    assert REWARDS.get("test/reward0-v1").doc == "How long."


async def test_an_object_with_an_async_call_is_a_reward(plugin: Any) -> None:
    class Judge:
        """Judges."""

        async def __call__(self, episode: RewardInput, *, worth: float = 0.5) -> float:
            return worth

    assert (await plugin(Judge(), params={"worth": 2.0}).score(episode())).value == 2.0
    assert REWARDS.get("test/reward0-v1").doc == "Judges."
