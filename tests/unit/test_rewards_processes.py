"""Rewards and verifiers in worker processes: what hangs is killed and holds nobody up, and what a worker cannot have is refused."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pebble import ProcessFuture, ProcessPool

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.registry import load_plugin
from burnish.envs.types import Message, Task
from burnish.rewards.calling.processes import Reference, Workers, _call, _prepare, reference, worker_count
from burnish.rewards.plugin import REWARDS, make_scorer, reward
from burnish.rewards.remote.service import VERIFIERS, verifier
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit

PLUGIN = """
import asyncio, os, re, sys, threading, time
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.rewards.plugin import reward
from burnish.rewards.types import Score

class Words(str):  # which pickles, and cannot be read again
    def __new__(cls, code, words):
        return super().__new__(cls, f"{code}: {words}")

    def __reduce__(self):
        return (Words, ("one argument",))

class Stop(BaseException):  # as Words
    def __init__(self, code, words):
        super().__init__(f"{code}: {words}")

class Exits(float):
    def __reduce__(self):
        return (sys.exit, (5,))

HARSH = {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "close": GeneratorExit(), "cancel": asyncio.CancelledError()}
HARSH["stop"] = Stop(1, "x")

@reward("isolated/brief-v1", timeout_s=0.3, isolation="process")
@reward("isolated/answer-v1", timeout_s=2.0, isolation="process")
def answer(episode, *, scale: float = 1.0):
    text = episode.messages[-1].text
    if text == "backtrack":
        re.match(r"(a+)+$", "a" * 64 + "b")
    if text.startswith("hang "):
        open(text[5:], "w").close()
        threading.Event().wait()
    if text == "die":
        os._exit(7)
    if text == "raise":
        raise KeyError("no such part")
    if text in HARSH:
        raise HARSH[text]
    if text == "leaves":
        return Exits(1)
    if text == "fail":
        raise EpisodeFailure(Failure(FailureKind.VERIFIER_ERROR, "judge", "is ill"))
    if text == "nan":
        return Score(float("nan"))
    if text == "lock":
        return threading.Lock()
    if text == "words":
        return Score(1.0, {}, {"expected": Words(1, "x")})
    if text == "slow":
        time.sleep(0.5)
    return Score(len(text) * scale, {"pid": float(os.getpid())})
"""


def episode(text: str) -> RewardInput:
    return RewardInput("t/0", Task("t", 1), (Message("assistant", text),), 0.0)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("plugins") / "isolated.py"
    file.write_text(PLUGIN)
    load_plugin(file)
    yield file
    for id in ("isolated/answer-v1", "isolated/brief-v1"):
        REWARDS._loaded.pop(id)


async def test_a_regular_expression_that_backtracks_is_killed_and_delays_nobody(plugin: Path) -> None:
    scorer = make_scorer("isolated/answer-v1")
    before = await scorer.score(episode("warm"))
    others = 0
    catastrophe = asyncio.create_task(scorer.score(episode("backtrack")))
    while not catastrophe.done():
        assert (await scorer.score(episode("other"))).value == 5.0
        others += 1
    with pytest.raises(EpisodeFailure, match=r"no answer within 2 s; its process was killed") as caught:
        await catastrophe
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.REWARD_TIMEOUT, "isolated/answer-v1")
    assert before.value == 4.0
    assert others > 1, "without a process of its own, the expression lets no other call run before it has ended, which is never"


async def test_capacity_comes_back_however_many_calls_hang(plugin: Path) -> None:
    scorer = make_scorer("isolated/brief-v1")
    hung = await asyncio.gather(*(scorer.score(episode("backtrack")) for _ in range(2 * worker_count(64))), return_exceptions=True)
    assert all(isinstance(one, EpisodeFailure) and one.failure.kind is FailureKind.REWARD_TIMEOUT for one in hung), hung
    async with asyncio.timeout(60):
        while True:  # a machine that is busy may take longer than 0.3 s even for this
            with contextlib.suppress(EpisodeFailure):
                assert (await scorer.score(episode("four"))).value == 4.0
                break


async def test_what_goes_wrong_in_a_worker_is_told_apart(plugin: Path) -> None:
    scorer = make_scorer("isolated/answer-v1", params={"scale": 2.0})
    assert (await scorer.score(episode("four"))).value == 8.0
    for text, kind, detail in (
        ("die", FailureKind.REWARD_ERROR, "worker process ended during the call"),
        ("raise", FailureKind.REWARD_ERROR, "KeyError: 'no such part'\n  at "),
        ("nan", FailureKind.REWARD_INVALID, "must be a finite number"),
        ("fail", FailureKind.VERIFIER_ERROR, "is ill"),
        ("lock", FailureKind.REWARD_ERROR, "cannot be sent"),
        ("words", FailureKind.REWARD_ERROR, "what it returned cannot be read in this process: TypeError"),
        ("leaves", FailureKind.REWARD_ERROR, "what it returned cannot be read in this process: SystemExit: 5"),
        ("exit", FailureKind.REWARD_ERROR, "SystemExit: 3\n  at "),
        ("interrupt", FailureKind.REWARD_ERROR, "KeyboardInterrupt: "),
        ("close", FailureKind.REWARD_ERROR, "GeneratorExit: "),
        ("cancel", FailureKind.REWARD_ERROR, "CancelledError: "),
    ):
        with pytest.raises(EpisodeFailure) as caught:
            await scorer.score(episode(text))
        assert (caught.value.failure.kind, detail in caught.value.failure.detail) == (kind, True), caught.value.failure


async def test_an_error_that_cannot_be_read_here_ends_its_own_call_and_no_other(plugin: Path) -> None:
    scorer = make_scorer("isolated/answer-v1")
    beside = asyncio.create_task(scorer.score(episode("slow")))
    with pytest.raises(EpisodeFailure, match="Stop: 1: x"):
        await scorer.score(episode("stop"))
    assert (await beside).value == 4.0


async def test_a_pool_that_broke_is_replaced_and_what_waited_is_called_again(plugin: Path) -> None:
    """As pebble breaks it when a worker ends before anybody knows which call it had."""
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    assert (await workers.call(episode("four"))).value == 4.0
    broken = workers._pool
    assert broken is not None
    waiting = [asyncio.create_task(workers.call(episode("waits"))) for _ in range(3)]
    await asyncio.sleep(0)
    broken._pool_manager.handle_broken_pool(BrokenProcessPool("All workers expired"))
    assert [one.value for one in await asyncio.gather(*waiting)] == [5.0] * 3
    assert workers._pool is not broken
    assert workers._pool is not None
    workers._pool._pool_manager.handle_broken_pool(BrokenProcessPool("All workers expired"))  # while nobody waits
    assert (await workers.call(episode("four"))).value == 4.0
    workers.close()


class SandboxError(Exception):
    """Which pickles, and cannot be read again: its arguments are not those that it was made with."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{code}: {words}")


async def test_what_cannot_be_read_in_a_worker_ends_its_own_call_and_no_other(plugin: Path) -> None:
    scorer = make_scorer("isolated/answer-v1")
    beside = asyncio.create_task(scorer.score(episode("slow")))
    await asyncio.sleep(0.2)
    unread = replace(episode("four"), data={"error": SandboxError(1, "x")})
    async with asyncio.timeout(60):
        with pytest.raises(EpisodeFailure, match="what it is called with cannot be read in a worker process: TypeError"):
            await scorer.score(unread)
    assert (await beside).value == 4.0


async def test_a_call_that_a_worker_ended_with_before_it_began_is_made_again(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a worker is killed while it takes a call, and another call runs beside it: pebble never hears of it."""
    monkeypatch.setattr("burnish.rewards.calling.processes.LOOK_S", 0.05)
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=2)
    await workers.call(episode("four"))
    pool = workers._pool
    assert pool is not None
    schedule, lost = pool.schedule, list[ProcessFuture[object]]()

    def drop_first(*given: Any, **named: Any) -> Any:
        if lost:
            return schedule(*given, **named)
        lost.append(ProcessFuture())
        return lost[0]

    monkeypatch.setattr(pool, "schedule", drop_first)
    async with asyncio.timeout(60):
        first, second = await asyncio.gather(workers.call(episode("one")), workers.call(episode("three")))
    assert (first.value, second.value) == (3.0, 5.0) and lost[0].cancelled()
    assert workers._pool is pool, "which begins calls as before"
    workers.close()


@pytest.mark.parametrize("timeout_s", [None, 60.0])
async def test_a_pool_that_begins_nothing_is_replaced(plugin: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float | None) -> None:
    """As where a worker is killed while it takes a call, and keeps the lock under which the others would take theirs."""
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    await workers.call(episode("four"))
    pool = workers._pool
    assert pool is not None
    keep_lock(pool)
    starts = workers._running

    def start_again() -> ProcessPool:
        monkeypatch.setattr("burnish.rewards.calling.processes.BEGIN_S", 300.0)
        return starts()

    monkeypatch.setattr(workers, "_running", start_again)
    monkeypatch.setattr("burnish.rewards.calling.processes.BEGIN_S", 0.1)
    monkeypatch.setattr("burnish.rewards.calling.processes.LOOK_S", 0.05)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(workers.call(episode("three"), timeout_s) for _ in range(2)))
    assert [answer.value for answer in answers] == [5.0, 5.0]
    assert workers._pool is not pool and not pool._pool_manager.worker_manager.workers
    workers.close()


async def test_a_call_that_its_pool_does_not_kill_is_ended_with_the_pool(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.rewards.calling.processes.LOOK_S", 0.05)
    monkeypatch.setattr("burnish.rewards.calling.processes.KILL_S", 0.1)
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    await workers.call(episode("four"))
    pool, begun = workers._pool, tmp_path / "begun"
    assert pool is not None
    hanging = asyncio.create_task(workers.call(episode(f"hang {begun}"), timeout_s=0.5))
    async with asyncio.timeout(60):
        while not begun.exists():
            await asyncio.sleep(0.01)
        keep_lock(pool)
        with pytest.raises(TimeoutError, match=r"no answer within 0.5 s; its process was killed"):
            await hanging
    assert not pool.active and not pool._pool_manager.worker_manager.workers
    assert (await workers.call(episode("four"))).value == 4.0
    workers.close()


async def test_a_pool_that_begins_nothing_is_ended_though_each_call_is_given_up_before_that(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those to a verifier service, whose callers have deadlines of their own."""
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    await workers.call(episode("four"))
    pool = workers._pool
    assert pool is not None
    keep_lock(pool)
    monkeypatch.setattr("burnish.rewards.calling.processes.BEGIN_S", 1.0)
    monkeypatch.setattr("burnish.rewards.calling.processes.LOOK_S", 0.05)
    async with asyncio.timeout(60):
        while pool.active:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(workers.call(episode("three")), 0.2)
        monkeypatch.setattr("burnish.rewards.calling.processes.BEGIN_S", 300.0)
        assert (await workers.call(episode("three"))).value == 5.0
    assert not pool._pool_manager.worker_manager.workers
    workers.close()


async def test_calls_that_a_worker_takes_once_they_are_given_up_begin(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    await workers.call(episode("four"))
    pool = workers._pool
    assert pool is not None
    keep_lock(pool)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(workers.call(episode("three")), 0.1)
    assert workers._waited > 0 and list(workers._left.values()) == [math.inf]
    channel = pool._pool_manager.worker_manager.workers_channel
    assert channel is not None
    channel.mutex.release()
    async with asyncio.timeout(60):
        assert (await workers.call(episode("three"))).value == 5.0
    assert workers._waited == 0 and workers._pool is pool
    workers.close()


async def test_a_pool_that_does_not_kill_a_call_that_was_given_up_is_ended(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.rewards.calling.processes.LOOK_S", 0.05)
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    await workers.call(episode("four"))
    pool, begun = workers._pool, tmp_path / "begun"
    assert pool is not None
    hanging = asyncio.create_task(workers.call(episode(f"hang {begun}")))
    async with asyncio.timeout(60):
        while not begun.exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        keep_lock(pool)
        hanging.cancel()
        monkeypatch.setattr("burnish.rewards.calling.processes.KILL_S", 0.1)
        assert (await workers.call(episode("four"))).value == 4.0
    assert not pool.active and not pool._pool_manager.worker_manager.workers
    workers.close()


def keep_lock(pool: ProcessPool) -> None:
    channel = pool._pool_manager.worker_manager.workers_channel
    assert channel is not None and channel.mutex.acquire()


async def test_workers_start_in_a_thread(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, threads = ProcessPool._start_pool, list[threading.Thread]()

    def seen(pool: ProcessPool) -> None:
        threads.append(threading.current_thread())
        start(pool)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(ProcessPool, "_start_pool", seen)
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    assert (await workers.call(episode("four"))).value == 4.0
    assert threads and threading.main_thread() not in threads, "the event loop would stand still"
    workers.close()


async def test_workers_that_cannot_be_started_are_said(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(pool: ProcessPool) -> None:
        raise BrokenProcessPool from OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ProcessPool, "_start_pool", full)
    with pytest.raises(EpisodeFailure, match=r"its worker processes cannot be started: \[Errno 11\] Resource temporarily unavailable"):
        await make_scorer("isolated/answer-v1").score(episode("four"))


async def test_a_cancelled_call_is_killed_too(plugin: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    workers = Workers(reference("reward", "isolated/answer-v1", REWARDS.get("isolated/answer-v1").function), {}, count=1)
    hanging = asyncio.create_task(workers.call(episode(f"hang {begun}")))
    async with asyncio.timeout(60):
        while not begun.exists():
            await asyncio.sleep(0.01)
        hanging.cancel()
        assert (await workers.call(episode("four"))).value == 4.0  # the only worker is free again
    workers.close()


def module_level(episode: RewardInput) -> float:
    return 1.0


async def test_a_plugin_that_a_worker_does_not_find_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.py"
    file.write_text("def score(episode):\n    return 1.0\n")
    function = vars(sys.modules[load_plugin(file)])["score"]
    reward("isolated/elsewhere-v1", isolation="process")(function)
    try:
        with pytest.raises(EpisodeFailure, match="found no reward 'isolated/elsewhere-v1' registered; register it there"):
            await make_scorer("isolated/elsewhere-v1").score(episode("x"))
    finally:
        REWARDS._loaded.pop("isolated/elsewhere-v1")


def test_a_module_whose_import_exits_in_a_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_that_leaves.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    where = Reference("reward", "isolated/leaving-v1", "module_that_leaves")
    monkeypatch.setattr("burnish.rewards.calling.processes._found", {})
    _prepare(where)
    how, said = _call(where, b"")
    assert how == "unfit" and said.startswith("a worker process cannot import it: SystemExit: 3\n  at ")


def test_functions_that_no_worker_can_have_are_refused_where_they_are_declared() -> None:
    def local(episode: RewardInput) -> float:
        return 1.0

    async def later(episode: RewardInput) -> float:
        return 1.0

    def main(episode: RewardInput) -> float:
        return 1.0

    main.__module__, main.__qualname__ = "__main__", "main_level"
    for register in (
        lambda f: reward("isolated/x-v1", isolation="process")(f),
        lambda f: verifier("isolated/x-v1", isolation="process")(f),
    ):
        with pytest.raises(ValueError, match=r"local is defined inside test_functions_that_no_worker_can_have.*; move it to the top level"):
            register(local)
        with pytest.raises(ValueError, match="main_level is defined in __main__; move it"):
            register(main)
        with pytest.raises(ValueError, match="is for sync functions"):
            register(later)
    with pytest.raises(ValueError, match="isolation 'proces' is unknown; did you mean 'process'"):
        reward("isolated/x-v1", isolation="proces")(module_level)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="isolation 'proces' is unknown; did you mean 'process'"):
        verifier("isolated/x-v1", isolation="proces")  # type: ignore[arg-type]
    assert VERIFIERS.loaded("isolated/x-v1") is None


def test_workers_are_few_but_never_one_for_all() -> None:
    assert (worker_count(1), worker_count(2)) == (1, 2)
    assert worker_count(64) >= 2
