"""Equal input is scored once, different input never taken for equal, failures are not kept, and the cache stays small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from burnish.envs.failures import EpisodeFailure
from burnish.envs.types import Message, Task
from burnish.rewards.calling.cache import ScoreCache, content_key
from burnish.rewards.plugin import REWARDS, make_group_scorer, make_scorer, reward
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit

ID = "test/cached-v1"


def episode(text: str = "7", sample: int = 0, **changes: Any) -> RewardInput:
    given: dict[str, Any] = {"data": {"answer": 7}, "metrics": {"turns": 1.0}, **changes}
    return RewardInput(f"t/{sample}", Task("t", 1, data={"a": 1}), (Message("user", "?"), Message("assistant", text)), 0.5, **given)


@pytest.fixture
def cached() -> Iterator[Callable[..., Any]]:
    def make(function: Callable[..., Any], params: dict[str, Any] | None = None, **declared: Any) -> Any:
        reward(ID, **{"cache": True, **declared})(function)
        return (make_group_scorer if declared.get("level") == "group" else make_scorer)(ID, params=params)

    yield make
    REWARDS._loaded.pop(ID, None)
    REWARDS._sources.pop(ID, None)


def test_equal_content_has_one_key_and_every_difference_another() -> None:
    base = episode()
    assert content_key([base]) == content_key([replace(base, episode_id="t/5", data={"answer": 7})])
    different = [
        episode("8"),
        episode(data={"answer": 8}),
        episode(metrics={"turns": 2.0}),
        episode(truncation="context"),
        episode(env_parts={"correct": 1.0}),
        replace(base, env_reward=0.25),
        replace(base, task=Task("u", 1, data={"a": 1})),
        replace(base, task=Task("t", 2, data={"a": 1})),
        replace(base, task=Task("t", 1, data={"a": 2})),
        replace(base, task=replace(base.task, prompt=(Message("user", "!"),))),
        replace(base, messages=(*base.messages, Message("user", ""))),
        replace(base, messages=(replace(base.messages[0], role="system"), base.messages[1])),
    ]
    keys = {content_key([one]) for one in (base, *different)}
    assert len(keys) == 1 + len(different)
    assert content_key([base, base]) not in keys
    assert content_key([episode("\ud800")]) is not None, "whatever a policy writes"
    assert content_key([episode(data={"image": np.zeros(3)})]) is None, "no JSON: never cached"


@pytest.mark.parametrize("level", ["episode", "turn", "batch"])
async def test_equal_episodes_are_scored_once_even_at_the_same_time(cached: Any, level: str) -> None:
    calls: list[Any] = []

    async def judge(given: Any) -> Any:
        calls.append(given)
        await asyncio.sleep(0.005)
        return [1.0] * len(given) if level == "batch" else 1.0

    scorer = cached(judge, level=level)
    first = await asyncio.gather(*(scorer.score(episode(sample=i)) for i in range(8)))
    assert {score.value for score in [*first, await scorer.score(episode())]} == {1.0}
    assert len(calls) == 1
    await scorer.score(episode("8"))
    assert len(calls) == 2


async def test_a_group_is_cached_as_a_whole(cached: Any) -> None:
    calls: list[int] = []

    def rank(episodes: Sequence[RewardInput]) -> list[float]:
        calls.append(len(episodes))
        return [float(len(one.answer or "")) for one in episodes]

    scorer = cached(rank, level="group")
    for _ in range(2):
        assert [score.value for score in await scorer.score_group([episode("a"), episode("bb")])] == [1.0, 2.0]
    assert [score.value for score in await scorer.score_group([episode("bb"), episode("a")])] == [2.0, 1.0]
    assert calls == [2, 2]


async def test_without_a_cache_every_call_is_made(cached: Any) -> None:
    calls = iter((1.0, 2.0, 3.0))
    scorer = cached(lambda given: next(calls), cache=False)
    assert [(await scorer.score(episode())).value for _ in range(3)] == [1.0, 2.0, 3.0]


async def test_other_options_are_other_results(cached: Any) -> None:
    def priced(episode: RewardInput, *, price: float) -> float:
        return price

    assert (await cached(priced, {"price": 1.0}).score(episode())).value == 1.0
    assert (await make_scorer(ID, params={"price": 2.0}).score(episode())).value == 2.0


async def test_a_failure_is_not_kept(cached: Any) -> None:
    calls: list[Any] = []

    def flaky(given: RewardInput) -> float:
        calls.append(given)
        if len(calls) == 1:
            raise OSError("busy")
        return 1.0

    scorer = cached(flaky)
    with pytest.raises(EpisodeFailure, match="task t: OSError: busy"):
        await scorer.score(episode())
    assert (await scorer.score(episode())).value == 1.0
    assert len(calls) == 2


async def test_a_group_with_a_failed_member_is_not_kept(cached: Any) -> None:
    script = iter([[1.0, ValueError("busy")], [1.0, 0.0]])
    scorer = cached(lambda episodes: next(script), level="group")
    members = [episode("a"), episode("b")]
    assert [getattr(one, "value", None) for one in await scorer.score_group(members)] == [1.0, None]
    for _ in range(2):
        assert [getattr(one, "value", None) for one in await scorer.score_group(members)] == [1.0, 0.0]


async def test_the_least_recently_used_goes_first() -> None:
    cache: ScoreCache[int] = ScoreCache(2)
    made: list[int] = []

    async def get(key: int) -> int:
        async def compute() -> int:
            made.append(key)
            return key

        return await cache.once([episode(str(key))], compute)

    for key in (1, 2, 1, 3, 1, 2):
        assert await get(key) == key
    assert made == [1, 2, 3, 2]


async def test_one_who_gives_up_does_not_take_the_result_from_the_others() -> None:
    cache: ScoreCache[int] = ScoreCache(4)
    release, ended = asyncio.Event(), asyncio.Event()

    async def compute() -> int:
        try:
            await release.wait()
        finally:
            ended.set()
        return 5

    first, second = (asyncio.create_task(cache.once([episode("k")], compute)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await second == 5

    release.clear()
    ended.clear()
    last = asyncio.create_task(cache.once([episode("other")], compute))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    last.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    release.set()
    assert await cache.once([episode("other")], compute) == 5, "what nobody waited for was ended, and is computed anew"
