"""Rewards of every level, sync and async: what they are called with, what comes of it, and what becomes of everything that goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.clock import patient_loop

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Message, Task
from burnish.rewards.plugin import REWARDS, make_group_scorer, make_scorer, reward
from burnish.rewards.types import InvalidScore, RewardInput, Score, TurnInput, turns_of

pytestmark = pytest.mark.unit

LEVELS = ("episode", "turn", "group", "batch")
TASK = Task("train-17", 17, (Message("user", "Inspect."), Message("assistant", "Gladly: which part?"), Message("user", "Part 17.")))
TALK = (
    Message("assistant", "measure(17)"),
    Message("tool", "0.02"),
    Message("user", "And?"),
    Message("assistant", "scrap it"),
)


def episode(sample: int = 0, *talk: Message, **changes: Any) -> RewardInput:
    return RewardInput(f"train-17/{sample}", TASK, (*TASK.prompt, *(talk or TALK)), 0.0, **changes)


@pytest.fixture
def plugin() -> Iterator[Callable[..., Any]]:
    """Registers a function under a test id and returns its scorer; forgets it afterwards."""
    added: list[str] = []

    def make(function: Callable[..., Any], level: str, **limits: Any) -> Any:
        id = f"test/level{len(added)}-v1"
        own = {"max_wait_s": 0.0} if level == "batch" else {}
        reward(id, level=level, **{"timeout_s": 5.0, **own, **limits})(function)  # type: ignore[arg-type]
        added.append(id)
        return (make_group_scorer if level == "group" else make_scorer)(id)

    yield make
    for id in added:
        REWARDS._loaded.pop(id)
        REWARDS._sources.pop(id)


def as_written(function: Callable[[Any], Any], asynchronous: bool) -> Callable[[Any], Any]:
    """The function, or a coroutine function that does the same."""

    async def awaited(argument: Any) -> Any:
        await asyncio.sleep(0)
        return function(argument)

    return awaited if asynchronous else function


def answer(level: str, result: Any, count: int = 2) -> Any:
    """`result` in the shape that a function of this level returns for one task."""
    return [result] * count if level in ("group", "batch") else result


async def failure_of(scorer: Any) -> Failure:
    """The failure of train-17/0, judged with another member where the scorer compares."""
    try:
        if hasattr(scorer, "score_group"):
            (found, _) = await scorer.score_group([episode(0), episode(1)])
            assert isinstance(found, Failure)
            return found
        if hasattr(scorer, "_batcher"):
            both = await asyncio.gather(scorer.score(episode(0)), scorer.score(episode(1)), return_exceptions=True)
            assert isinstance(both[0], EpisodeFailure)
            return both[0].failure
        await scorer.score(episode(0))
    except EpisodeFailure as error:
        return error.failure
    raise AssertionError("it gave a score")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_each_level_is_called_with_what_it_judges(plugin: Any, asynchronous: bool) -> None:
    seen: list[Any] = []

    def note(result: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def function(argument: Any) -> Any:
            seen.append(argument)
            return result(argument)

        return as_written(function, asynchronous)

    one = await plugin(note(lambda given: 0.5), "episode").score(episode())
    assert (one, seen) == (Score(0.5), [episode()])
    seen.clear()

    turns = await plugin(note(lambda given: 0.5 + given.index), "turn").score(episode())
    assert turns == Score(2.0, turns=(0.5, 1.5))
    seen.sort(key=lambda turn: turn.index)
    assert [(turn.index, turn.message.text, turn.observation) for turn in seen] == [
        (0, "measure(17)", TALK[1:3]),
        (1, "scrap it", ()),
    ]
    assert seen[0].messages == (*TASK.prompt, TALK[0]), "the prompt's own assistant message is no turn"
    assert seen[1].episode == episode()
    seen.clear()

    members = [episode(0), episode(1, Message("assistant", "pass"))]
    ranked = await plugin(note(lambda given: [float(len(one.messages)) for one in given]), "group").score_group(members)
    assert (ranked, [list(given) for given in seen]) == ([Score(7.0), Score(4.0)], [members])


def test_the_turns_are_those_that_the_episode_counts() -> None:
    spoken = (Message("assistant", "Hello."), Message("user", "Go."), Message("assistant", "a"), Message("assistant", "b"))
    assert [turn.message.text for turn in turns_of(episode(0, *spoken, metrics={"turns": 2.0}))] == ["a", "b"]
    assert [turn.message.text for turn in turns_of(episode(0, *spoken))] == ["Hello.", "a", "b"]
    assert turns_of(episode(0, Message("user", "x"))) == ()
    assert turns_of(episode(0, *spoken, metrics={"turns": 0.0})) == ()


async def test_parts_of_turns_add_up_and_later_labels_count(plugin: Any) -> None:
    def judge(turn: TurnInput) -> Score:
        return Score(1.0, {"polite": 0.5, f"only{turn.index}": 1.0}, {"predicted": turn.message.text})

    score = await plugin(judge, "turn").score(episode())
    assert score == Score(2.0, {"polite": 1.0, "only0": 1.0, "only1": 1.0}, {"predicted": "scrap it"}, (1.0, 1.0))


async def test_an_episode_reward_may_value_each_turn_but_must_value_all(plugin: Any) -> None:
    assert (await plugin(lambda _: Score(1.0, turns=(0.25, 0.75)), "episode").score(episode())).turns == (0.25, 0.75)
    failure = await failure_of(plugin(lambda _: Score(1.0, turns=(1.0,)), "episode"))
    assert failure.kind is FailureKind.REWARD_INVALID
    assert "turns of the score has 1 values, the episode has 2" in failure.detail
    assert "a single turn has none" in (await failure_of(plugin(lambda _: Score(1.0, turns=(1.0,)), "turn"))).detail


async def test_an_episode_whose_policy_was_cut_short_before_it_said_anything_is_worth_what_no_turn_is(plugin: Any) -> None:
    """That is the policy's doing, no failure of the infrastructure, which would keep it out of the loss and of an evaluation."""
    silent = episode(0, Message("user", "Anyone?"), metrics={"turns": 0.0}, truncation="time")
    assert await plugin(lambda turn: 1.0, "turn").score(silent) == Score(0.0)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "returned",
    [float("nan"), float("inf"), -float("inf"), None, "1.0", object(), [1.0], {}, {"a": float("nan")}, {"a": None}, 1j],
    ids=lambda value: str(value)[:12],
)
async def test_what_is_no_score_is_invalid(plugin: Any, level: str, returned: Any, asynchronous: bool) -> None:
    failure = await failure_of(plugin(as_written(lambda _: answer(level, returned), asynchronous), level))
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_INVALID, "test/level0-v1")
    assert failure.detail.startswith("task train-17: ")
    assert "test_rewards_levels.py" in failure.detail, "where the function stands"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", LEVELS)
async def test_a_score_that_cannot_be_made_is_invalid_where_it_was_made(plugin: Any, level: str, asynchronous: bool) -> None:
    failure = await failure_of(plugin(as_written(lambda _: Score(float("nan")), asynchronous), level))
    assert failure.kind is FailureKind.REWARD_INVALID
    assert InvalidScore.__name__ in failure.detail and "must be a finite number" in failure.detail


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("error", [KeyError("answer"), TimeoutError("database"), SystemExit(3), StopIteration(), AssertionError()])
async def test_whatever_it_raises_is_an_error_with_its_line(plugin: Any, level: str, error: BaseException, asynchronous: bool) -> None:
    def broken(_: Any) -> Any:
        raise error

    failure = await failure_of(plugin(as_written(broken, asynchronous), level))
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_ERROR, "test/level0-v1")
    assert failure.detail.startswith("task train-17: ")
    assert type(error).__name__ in failure.detail
    assert "\n  at " in failure.detail and failure.detail.count("\n") <= 4, "a short traceback"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("level", LEVELS)
async def test_a_hang_times_out_and_says_where(plugin: Any, level: str, asynchronous: bool) -> None:
    release, loop = threading.Event(), patient_loop()

    def begins(given: Any) -> bool:
        """Whether it is the call whose failure is told: time passes when that one hangs, whichever of two threads came first."""
        first = given[0] if isinstance(given, list) else given
        return first.index == 0 if level == "turn" else bool(first.episode_id.endswith("/0"))

    def hangs(given: Any) -> Any:
        if begins(given):
            loop.pass_time(60)
        release.wait(30)

    async def waits(given: Any) -> Any:
        if begins(given):
            loop.pass_time(60)
        await asyncio.Event().wait()

    failure = await failure_of(plugin(waits if asynchronous else hangs, level, timeout_s=60))
    release.set()
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_TIMEOUT, "test/level0-v1")
    assert failure.detail.startswith("task train-17: ") and "no answer within 60 s" in failure.detail
    assert f"in {'waits' if asynchronous else 'hangs'}" in failure.detail


@pytest.mark.parametrize("level", LEVELS)
async def test_a_typed_failure_keeps_its_own_attribution(plugin: Any, level: str) -> None:
    typed = Failure(FailureKind.TOOL_ERROR, "gauge", "disconnected")

    def raises(_: Any) -> Any:
        raise EpisodeFailure(typed)

    assert await failure_of(plugin(raises, level)) == typed


async def test_a_failed_turn_is_named_and_fails_the_episode(plugin: Any) -> None:
    def picky(turn: TurnInput) -> float:
        return 1.0 / (1 - turn.index)

    failure = await failure_of(plugin(picky, "turn"))
    assert failure.detail.startswith("task train-17: turn 1: ZeroDivisionError")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("returned", [[1.0], [1.0] * 3, [], 1.0, None, "ab", {"a": 1.0, "b": 2.0}])
async def test_a_group_of_the_wrong_length_is_invalid(plugin: Any, returned: Any, asynchronous: bool) -> None:
    failure = await failure_of_whole(plugin(as_written(lambda _: returned, asynchronous), "group"))
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_INVALID, "test/level0-v1")
    assert "for 2 episodes" in failure.detail or "a list of 2" in failure.detail


async def failure_of_whole(scorer: Any) -> Failure:
    with pytest.raises(EpisodeFailure) as caught:
        await scorer.score_group([episode(0), episode(1)])
    return caught.value.failure


async def test_one_bad_member_does_not_fail_the_others(plugin: Any) -> None:
    found = await plugin(lambda _: [1.0, ValueError("unreadable")], "group").score_group([episode(0), episode(1)])
    assert found[0] == Score(1.0)
    assert isinstance(found[1], Failure) and found[1].kind is FailureKind.REWARD_ERROR


@pytest.mark.parametrize("level", ["group", "batch"])
async def test_a_function_may_reorder_its_list_without_mixing_up_the_results(plugin: Any, level: str) -> None:
    def turns_it_round(episodes: list[RewardInput]) -> list[float]:
        given = [float(one.episode_id.rpartition("/")[2]) for one in episodes]
        episodes.reverse()
        return [*given[:-1], float("nan")]

    scorer = plugin(turns_it_round, level, **({"max_wait_s": 0.05} if level == "batch" else {}))
    if level == "group":
        found = await scorer.score_group([episode(5), episode(6)])
    else:
        found = await asyncio.gather(scorer.score(episode(5)), scorer.score(episode(6)), return_exceptions=True)
    assert found[0] == Score(5.0)
    assert not isinstance(found[1], Score)


async def test_a_failure_quotes_no_more_than_a_person_reads(plugin: Any) -> None:
    def quotes(given: RewardInput) -> float:
        raise ValueError("x" * 1_000_000)

    detail = (await failure_of(plugin(quotes, "episode"))).detail
    assert len(detail) <= 2000 and detail.startswith("task train-17: ValueError: xxx") and detail.endswith(" in quotes")


async def test_sums_beyond_a_number_are_invalid(plugin: Any) -> None:
    assert "beyond what a number can hold" in (await failure_of(plugin(lambda turn: 1.7e308, "turn"))).detail
    assert "beyond what a number can hold" in (await failure_of(plugin(lambda given: {"a": 1.7e308, "b": 1.7e308}, "episode"))).detail
    assert (await failure_of(plugin(lambda given: 10**400, "episode"))).kind is FailureKind.REWARD_INVALID


async def test_a_group_too_small_for_the_plugin_is_refused(plugin: Any) -> None:
    scorer = plugin(lambda episodes: [1.0] * len(episodes), "group", min_members=3)
    assert scorer.min_members == 3
    assert "2 members, but it compares at least 3" in (await failure_of_whole(scorer)).detail


async def test_calls_at_once_are_limited_per_plugin(plugin: Any) -> None:
    inside, most = 0, 0

    async def judge(_: Any) -> float:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1
        return 1.0

    scorer = plugin(judge, "episode", max_concurrent=3)
    await asyncio.gather(*(scorer.score(episode(i)) for i in range(20)))
    assert most == 3
    most = 0
    scorer = plugin(judge, "turn", max_concurrent=2)
    await asyncio.gather(*(scorer.score(episode(i)) for i in range(10)))
    assert most == 2


async def test_waiting_for_a_turn_does_not_count_against_the_deadline(plugin: Any) -> None:
    async def judge(_: Any) -> float:
        await asyncio.sleep(0.05)
        return 1.0

    scorer = plugin(judge, "episode", max_concurrent=1, timeout_s=0.8)
    scores = await asyncio.gather(*(scorer.score(episode(i)) for i in range(20)))  # 1 s in all
    assert len(scores) == 20


async def test_async_rewards_take_no_threads_and_sync_ones_share_a_few(plugin: Any) -> None:
    names: set[str] = set()

    async def on_the_loop(_: RewardInput) -> float:
        names.add(threading.current_thread().name)
        return 1.0

    scorer = plugin(on_the_loop, "episode")
    await asyncio.gather(*(scorer.score(episode(i)) for i in range(200)))
    assert names == {threading.current_thread().name}

    idents: set[int] = set()

    def in_a_thread(_: RewardInput) -> float:
        idents.add(threading.get_ident())
        return 1.0

    scorer = plugin(in_a_thread, "episode", max_concurrent=4)
    await asyncio.gather(*(scorer.score(episode(i)) for i in range(200)))
    assert 1 <= len(idents) < 60, "threads are used again"


def test_the_level_decides_how_a_scorer_is_made_and_what_a_function_takes(plugin: Any) -> None:
    plugin(lambda episodes: [1.0] * len(episodes), "group")
    plugin(lambda episode: 1.0, "episode")
    with pytest.raises(ValueError, match="has level 'group': it compares attempts with each other"):
        make_scorer("test/level0-v1")
    with pytest.raises(ValueError, match="has level 'episode', not 'group'"):
        make_group_scorer("test/level1-v1")
    for level, said in (("turn", "turn: TurnInput"), ("group", "episodes: Sequence"), ("batch", "episodes: Sequence")):
        with pytest.raises(ValueError, match=f"as its first parameter, def f\\({said}"):
            reward("test/x-v1", level=level)(lambda: 1.0)  # type: ignore[arg-type]
