"""Batched rewards: what is judged together, in which order, how long anything waits, and what one bad row costs the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, Field
from tests.unit.clock import patient_loop

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Message, Task
from burnish.rewards.plugin import REWARDS, make_scorer, reward
from burnish.rewards.rubric import Rubric
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit

ID = "test/batched-v1"


class Prices(BaseModel):
    per_item: float = Field(gt=0)
    currency: str = "EUR"


def episode(i: int) -> RewardInput:
    return RewardInput(f"t{i}/0", Task(f"t{i}", i), (Message("user", "?"), Message("assistant", str(i))), 0.0)


@pytest.fixture
def batched() -> Iterator[Callable[..., Any]]:
    """Registers a function as a batched reward and returns its scorer; forgets it afterwards."""

    def make(function: Callable[..., Any], params: dict[str, Any] | None = None, **limits: Any) -> Any:
        reward(ID, level="batch", **{"max_wait_s": 0.02, "timeout_s": 5.0, **limits})(function)
        return make_scorer(ID, params=params)

    yield make
    REWARDS._loaded.pop(ID, None)
    REWARDS._sources.pop(ID, None)


async def outcome(scorer: Any, i: int) -> Score | Failure:
    try:
        return await scorer.score(episode(i))
    except EpisodeFailure as error:
        return error.failure


async def outcomes(scorer: Any, count: int) -> list[Score | Failure]:
    return list(await asyncio.gather(*(outcome(scorer, i) for i in range(count))))


def values(found: Sequence[Score | Failure]) -> list[float]:
    return [one.value for one in found if isinstance(one, Score)]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_is_ready_together_is_one_call_and_every_result_finds_its_episode(batched: Any, asynchronous: bool) -> None:
    sizes: list[int] = []

    def judge(episodes: Sequence[RewardInput]) -> list[float]:
        sizes.append(len(episodes))
        return [float(one.answer or "") for one in episodes]

    async def judge_async(episodes: Sequence[RewardInput]) -> list[float]:
        await asyncio.sleep(0)
        return judge(episodes)

    found = await outcomes(batched(judge_async if asynchronous else judge, max_batch=4), 10)
    assert values(found) == [float(i) for i in range(10)]
    assert sorted(sizes, reverse=True) == [4, 4, 2]


async def test_one_episode_alone_waits_no_longer_than_it_must(batched: Any) -> None:
    async def judge(episodes: Sequence[RewardInput]) -> list[float]:
        return [0.5] * len(episodes)

    clock = patient_loop().time
    started = clock()
    assert (await batched(judge, max_wait_s=0.05).score(episode(0))).value == 0.5
    assert clock() - started == pytest.approx(0.05, abs=0.01)
    started = clock()
    assert values(await outcomes(batched(judge, max_wait_s=30.0, max_batch=2), 2)) == [0.5, 0.5]
    assert clock() - started == pytest.approx(0.0, abs=0.01), "a full batch waits for nothing"


async def test_the_rubric_does_not_keep_a_batch_from_filling(batched: Any) -> None:
    sizes: list[int] = []

    async def judge(episodes: Sequence[RewardInput]) -> list[float]:
        sizes.append(len(episodes))
        return [1.0] * len(episodes)

    rubric = Rubric([(batched(judge, max_batch=100, max_wait_s=5.0), 1.0)], 0.0, max_concurrent=2)
    await asyncio.wait_for(asyncio.gather(*(rubric.score(episode(i)) for i in range(100))), 4)
    assert sizes == [100]


async def test_at_most_so_many_batches_run_at_once(batched: Any) -> None:
    inside, most = 0, 0

    async def judge(episodes: Sequence[RewardInput]) -> list[float]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return [1.0] * len(episodes)

    found = await outcomes(batched(judge, max_batch=2, max_concurrent=3), 31)
    assert (len(values(found)), most) == (31, 3)


@pytest.mark.parametrize("returned", [np.array([0.0, 1.0, 2.0]), (0.0, 1.0, {"a": 2.0}), [np.float32(0), True, Score(2.0)]])
async def test_any_sequence_of_results_will_do(batched: Any, returned: Any) -> None:
    assert values(await outcomes(batched(lambda episodes: returned), 3)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "1 results for 3 episodes"),
        ([1.0] * 4, "4 results for 3 episodes"),
        (1.0, "a list of 3, not float"),
        (None, "a list of 3, not NoneType"),
        ("abc", "a list of 3, not str"),
        ({"a": 1.0}, "a list of 3, not dict"),
        (np.array(1.0), "a list of 3, not ndarray"),
    ],
)
async def test_a_wrong_shape_fails_every_episode_of_the_batch(batched: Any, returned: Any, said: str, asynchronous: bool) -> None:
    async def judge_async(episodes: Sequence[RewardInput]) -> Any:
        return returned

    for i, failure in enumerate(await outcomes(batched(judge_async if asynchronous else lambda episodes: returned), 3)):
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.culprit) == (FailureKind.REWARD_INVALID, ID)
        assert failure.detail.startswith(f"task t{i}: ") and said in failure.detail
        assert "test_rewards_batches.py" in failure.detail


async def test_one_bad_row_does_not_fail_the_rest(batched: Any) -> None:
    typed = Failure(FailureKind.VERIFIER_UNAVAILABLE, "judge@nowhere", "down")
    rows = [0.5, float("nan"), KeyError("answer"), EpisodeFailure(typed), typed, "1.0", None, float("inf")]
    found = await outcomes(batched(lambda episodes: rows), len(rows))
    assert found[0] == Score(0.5)
    kinds = [one.kind if isinstance(one, Failure) else None for one in found[1:]]
    assert kinds == [
        FailureKind.REWARD_INVALID,
        FailureKind.REWARD_ERROR,
        FailureKind.VERIFIER_UNAVAILABLE,
        FailureKind.VERIFIER_UNAVAILABLE,
        FailureKind.REWARD_INVALID,
        FailureKind.REWARD_INVALID,
        FailureKind.REWARD_INVALID,
    ]
    assert found[3] == found[4] == typed, "a typed failure keeps its own attribution"
    assert isinstance(found[2], Failure) and found[2].detail.startswith("task t2: KeyError: 'answer'")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_exception_and_a_typed_failure_fail_each_episode_of_the_batch(batched: Any, asynchronous: bool) -> None:
    errors: list[Exception] = [RuntimeError("no quota"), EpisodeFailure(Failure(FailureKind.TOOL_ERROR, "gauge", "off"))]

    def judge(episodes: Sequence[RewardInput]) -> list[float]:
        raise errors.pop(0)

    async def judge_async(episodes: Sequence[RewardInput]) -> list[float]:
        return judge(episodes)

    scorer = batched(judge_async if asynchronous else judge)
    for i, failure in enumerate(await outcomes(scorer, 3)):
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.culprit) == (FailureKind.REWARD_ERROR, ID)
        assert failure.detail.startswith(f"task t{i}: RuntimeError: no quota\n  at ") and "in judge" in failure.detail
    assert await outcomes(scorer, 2) == [Failure(FailureKind.TOOL_ERROR, "gauge", "off")] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_batch_that_hangs_times_out_and_says_where(batched: Any, asynchronous: bool) -> None:
    release, loop = threading.Event(), patient_loop()

    def judge(episodes: Sequence[RewardInput]) -> list[float]:
        loop.pass_time(60)
        release.wait(30)
        return [1.0] * len(episodes)

    async def judge_async(episodes: Sequence[RewardInput]) -> list[float]:
        loop.pass_time(60)
        await asyncio.Event().wait()
        return [1.0] * len(episodes)

    for failure in await outcomes(batched(judge_async if asynchronous else judge, timeout_s=60), 2):
        assert isinstance(failure, Failure)
        assert failure.kind is FailureKind.REWARD_TIMEOUT
        assert "no answer within 60 s" in failure.detail
        assert f"in judge{'_async' if asynchronous else ''}" in failure.detail
    release.set()


async def test_a_failed_row_is_tried_again_and_only_that_row(batched: Any) -> None:
    seen: list[list[str]] = []

    def judge(episodes: Sequence[RewardInput]) -> list[Any]:
        seen.append([one.task.id for one in episodes])
        return [RuntimeError("flaky") if one.task.id == "t1" and len(seen) == 1 else 1.0 for one in episodes]

    rubric = Rubric([(batched(judge), 1.0)], 0.0, retries=1, backoff_s=0.0)
    scored = await asyncio.gather(*(rubric.score(episode(i)) for i in range(3)))
    assert [one.reward.total for one in scored] == [1.0, 1.0, 1.0]
    assert seen == [["t0", "t1", "t2"], ["t1"]]


async def test_cancelled_episodes_leave_the_queue_and_end_a_batch_nobody_waits_for(batched: Any) -> None:
    started, ended, sizes = asyncio.Event(), asyncio.Event(), list[int]()

    async def judge(episodes: Sequence[RewardInput]) -> list[float]:
        sizes.append(len(episodes))
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return [1.0] * len(episodes)

    scorer = batched(judge, max_batch=2, max_wait_s=0.05)
    early = asyncio.create_task(scorer.score(episode(0)))
    await asyncio.sleep(0)
    early.cancel()
    both = [asyncio.create_task(scorer.score(episode(i))) for i in (1, 2)]
    await asyncio.wait_for(started.wait(), 5)
    for task in both:
        task.cancel()
    await asyncio.gather(early, *both, return_exceptions=True)
    await asyncio.wait_for(ended.wait(), 5)
    assert sizes[0] in (1, 2)


def test_one_scorer_may_be_used_from_one_event_loop_after_another(batched: Any) -> None:
    scorer = batched(lambda episodes: [1.0] * len(episodes))
    for _ in range(3):
        assert values(asyncio.run(outcomes(scorer, 5))) == [1.0] * 5


async def test_options_are_one_pydantic_model(batched: Any) -> None:
    def priced(episodes: Sequence[RewardInput], *, options: Prices) -> list[float]:
        assert options.currency == "EUR"
        return [options.per_item] * len(episodes)

    assert values(await outcomes(batched(priced, {"per_item": 2}), 2)) == [2.0, 2.0]
    for params, message in (
        ({"per_itm": 2.0}, r"no option 'per_itm'; did you mean 'per_item'\?"),
        ({}, "needs the option 'per_item'"),
        ({"per_item": "dear"}, "option 'per_item': .*number.*, not 'dear'"),
        ({"per_item": -1.0}, "option 'per_item': .*greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_scorer(ID, params=params)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"level": "episode", "max_batch": 4}, "max_batch has no effect on level 'episode'"),
        ({"level": "group", "max_wait_s": 1.0}, "max_wait_s has no effect on level 'group'"),
        ({"level": "batch", "min_members": 2}, "min_members has no effect on level 'batch'"),
        ({"level": "batches"}, "level 'batches' is unknown; did you mean 'batch'"),
        ({"level": "batch", "max_batch": 0}, "max_batch must be at least 1"),
        ({"level": "batch", "max_wait_s": float("nan")}, "max_wait_s must be a number of seconds"),
        ({"level": "group", "min_members": 0}, "min_members must be at least 1"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1"),
        ({"cache": -1}, "cache must be True, False"),
    ],
)
def test_limits_that_make_no_sense_are_refused_when_declared(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward("test/x-v1", **limits)
