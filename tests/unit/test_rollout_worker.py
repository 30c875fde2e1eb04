"""The rollout worker over a scripted engine: how many episodes run at once, and what is left when they are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from burnish.envs.contract import ENVS, register_env
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import EpisodeGroup, Message, Outcome, Task
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.hung import HungEnvironments, WorkerUnfit
from burnish.rollout.weights import StaleEngine, snapshot
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

ENV_ID = "tests/Counted-v0"
CONCURRENCY = 3
SIZE = ModelSize(hidden=64, layers=1, heads=2, intermediate=64, vocab_size=300, max_position=128)


class Counted(gymnasium.Env[Any, str]):
    """Knows how many of its kind are open, and how many were at most."""

    observation_space, action_space = MessagesSpace(), UnicodeText()
    lock, open, most = threading.Lock(), 0, 0

    def __init__(self) -> None:
        with Counted.lock:
            Counted.open += 1
            Counted.most = max(Counted.most, Counted.open)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return (Message("user", "say done"),), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (), 1.0, True, False, {}

    def close(self) -> None:
        with Counted.lock:
            Counted.open -= 1


class Hangs(Counted):
    """Whose step hangs in some tasks, until it is let go."""

    let_go = threading.Event()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.hangs = bool(options and options["task"].data)
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.hangs:
            Hangs.let_go.wait()
        return super().step(action)


class Slow(Counted):
    """Whose making waits where a test says so, and whose closing does for the first that closes."""

    made, closing, let_go = threading.Event(), threading.Event(), threading.Event()
    makes_slowly, closes_slowly = False, 0

    def __init__(self) -> None:
        Slow.made.set()
        if Slow.makes_slowly:
            Slow.let_go.wait()
        super().__init__()

    def close(self) -> None:
        with Counted.lock:
            waits, Slow.closes_slowly = Slow.closes_slowly > 0, Slow.closes_slowly - 1
        Slow.closing.set()
        if waits:
            Slow.let_go.wait()
        super().close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[RolloutWorker, ScriptedEngine]]:
    """Over environments that wait to be let go, at their end."""
    if ENVS.loaded("tests/Slow-v0") is None:
        register_env("tests/Slow-v0", Slow)
    Counted.open = Counted.most = 0
    Slow.makes_slowly, Slow.closes_slowly = False, 0
    for event in (Slow.made, Slow.closing, Slow.let_go):
        event.clear()
    new_model(["say done"] * 20, tmp_path / "model", SIZE)
    limits = RolloutConfig(max_tokens_per_turn=8, concurrency=CONCURRENCY, retries=0)
    setup = WorkerSetup(tmp_path / "model", "tests/Slow-v0", rollout=limits, engine=EngineConfig(max_context=128))
    engine = ScriptedEngine([[5, 6]], max_context=128)
    made = RolloutWorker(setup, "rollout-1", engine=engine)
    yield made, engine
    Slow.let_go.set()
    made.close()


def until(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to that")


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[RolloutWorker]:
    if ENVS.loaded("tests/Hangs-v0") is None:
        register_env("tests/Hangs-v0", Hangs)
    Hangs.let_go.clear()
    new_model(["say done"] * 20, tmp_path / "model", SIZE)
    limits = RolloutConfig(max_tokens_per_turn=8, concurrency=20, step_timeout_s=4.0, retries=0)
    setup = WorkerSetup(tmp_path / "model", "tests/Hangs-v0", rollout=limits, engine=EngineConfig(max_context=128))
    made = RolloutWorker(setup, "rollout-1", engine=ScriptedEngine([[5, 6]], max_context=128))
    yield made
    Hangs.let_go.set()
    made.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[RolloutWorker, ScriptedEngine]]:
    if ENVS.loaded(ENV_ID) is None:
        register_env(ENV_ID, Counted)
    Counted.open = Counted.most = 0
    new_model(["say done"] * 20, tmp_path / "model", SIZE)
    limits = RolloutConfig(max_tokens_per_turn=8, concurrency=CONCURRENCY)
    setup = WorkerSetup(tmp_path / "model", ENV_ID, rollout=limits, engine=EngineConfig(max_context=128))
    engine = ScriptedEngine([[5, 6]], max_context=128, delay_s=0.01)
    made = RolloutWorker(setup, "rollout-1", engine=engine)
    yield made, engine
    made.close()


def tasks(first: int, count: int) -> list[Task]:
    return [Task(f"t{i}", i) for i in range(first, first + count)]


def test_all_that_was_submitted_shares_the_worker_s_places(worker: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, _ = worker
    for first in (0, 4, 8):
        player.submit(tasks(first, 4), 2, 1.0)
    found = 0
    while found < 12:
        found += len(player.sample(30.0))
    assert Counted.most <= CONCURRENCY
    assert Counted.open == 0


def test_cancelling_returns_when_every_episode_has_closed_its_environment(worker: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, engine = worker
    engine._delay_s = 600.0
    player.submit(tasks(0, 4), 2, 1.0)
    while Counted.open < CONCURRENCY:
        threading.Event().wait(0.01)
    player.cancel()
    assert Counted.open == 0
    engine._delay_s = 0.0
    player.submit(tasks(9, 1), 1, 1.0)
    assert [group.task.id for group in player.sample(30.0)] == ["t9"]


@pytest.mark.parametrize("at_its_end", [True, False], ids=["at its end", "on its way"])
def test_cancelling_waits_for_an_environment_that_is_slow_to_close(slow: tuple[RolloutWorker, ScriptedEngine], at_its_end: bool) -> None:
    """It returned when the first member of a group had closed, and at once where an episode that had ended well was closing."""
    player, engine = slow
    engine._delay_s, Slow.closes_slowly = 0.0 if at_its_end else 600.0, 1
    player.submit(tasks(0, 1), 2, 1.0)
    until(lambda: Counted.most == 2)
    if at_its_end:
        until(lambda: Counted.open == 1)
    cancelling = threading.Thread(target=player.cancel, daemon=True)
    cancelling.start()
    until(lambda: Counted.open == 1)
    cancelling.join(0.2)
    assert cancelling.is_alive()
    Slow.let_go.set()
    cancelling.join(60.0)
    assert not cancelling.is_alive() and Counted.open == 0


def test_closing_gives_an_engine_the_time_of_the_setup_and_no_more(tmp_path: Path) -> None:
    class NeverCloses(ScriptedEngine):
        async def close(self) -> None:
            await asyncio.Event().wait()

    new_model(["say done"] * 20, tmp_path / "model", SIZE)
    setup = WorkerSetup(tmp_path / "model", "burnish/Arithmetic-v0", engine=EngineConfig(max_context=128), cancel_s=0.05)
    player = RolloutWorker(setup, "rollout-1", engine=NeverCloses([[5, 6]], max_context=128))
    assert player._cancel_s == pytest.approx(0.05 + player._parts.close_s)
    with pytest.raises(TimeoutError):
        player.close()
    player._loop.call_soon_threadsafe(player._loop.stop)


def test_what_ends_after_a_cancel_that_came_to_no_end_passes_for_nothing_new(slow: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, engine = slow
    player.submit(tasks(0, 1), 1, 1.0)
    until(lambda: player.progress.episodes == 1)  # finished, and nobody has fetched it
    engine._delay_s, Slow.closes_slowly = 600.0, 1
    player.submit(tasks(1, 1), 1, 1.0)
    until(lambda: len(engine.requests) == 2)
    player._cancel_s = 0.05
    with pytest.raises(TimeoutError):
        player.cancel()
    engine._gate.version, engine._delay_s, player._cancel_s = 1, 0.0, 60.0
    player.submit(tasks(0, 1), 1, 1.0)
    (found,) = player.sample(60.0)
    assert found.task.id == "t0" and found.episodes[0].turns[0].policy_version.tolist() == [1, 1]
    assert player.progress.pending == 0


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_environment_that_is_made_when_nobody_waits_any_longer_is_closed(
    slow: tuple[RolloutWorker, ScriptedEngine], cancelled: bool
) -> None:
    player, _ = slow
    Slow.makes_slowly = True
    player._parts = replace(player._parts, limits=player._parts.limits.model_copy(update={"step_timeout_s": 600.0 if cancelled else 0.05}))
    player.submit(tasks(0, 1), 1, 1.0)
    Slow.made.wait()
    if cancelled:
        player.cancel()
    else:
        (group,) = player.sample(60.0)
        assert isinstance(group.episodes[0].outcome, Failure) and group.episodes[0].outcome.kind is FailureKind.ENV_TIMEOUT
    assert (Counted.most, Counted.open) == (0, 0) and not Slow.closing.is_set()
    Slow.let_go.set()
    until(lambda: Slow.closing.is_set() and Counted.open == 0)
    assert Counted.most == 1


def test_progress_counts_calls_that_ended_and_names_those_under_way(worker: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, engine = worker
    engine._delay_s = 600.0
    player.submit(tasks(0, 1), 1, 1.0)
    until(lambda: engine.requests)
    assert (player.progress.episodes, player.progress.calls, player.progress.under_way) == (0, 2, {"engine": 1})  # it was made and reset


def test_work_for_another_life_is_refused(worker: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, _ = worker
    calls: tuple[Callable[[str], object], ...] = (
        lambda life: player.submit(tasks(0, 1), 1, 1.0, life=life),
        lambda life: player.sample(0.0, life),
        lambda life: player.score([], life=life),
    )
    for call in calls:
        call(player.life)
        with pytest.raises(StaleEngine, match="rollout-1 was started anew, and has nothing of what it was given before"):
            call("another")
    assert player.update_weights(snapshot(1, {}), 60.0).life == player.life


def test_work_for_other_weights_is_refused(worker: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, _ = worker
    with pytest.raises(StaleEngine, match="rollout-1 holds weights 0, and work under 3 was asked for"):
        player.submit(tasks(0, 1), 1, 1.0, version=3)
    with pytest.raises(StaleEngine):
        player.score([[1, 2]], version=3)
    assert player.progress.pending == 0


def test_an_environment_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    new_model(["say done"] * 20, tmp_path / "model", SIZE)
    lines = ["from burnish.envs import register_env", "from burnish.envs.builtin.arithmetic import Arithmetic"]
    (tmp_path / "mine.py").write_text("\n".join([*lines, "register_env('mine/Sums-v0', Arithmetic)"]))
    setup = WorkerSetup(tmp_path / "model", "mine/Sums-v0", engine=EngineConfig(max_context=128), modules=(str(tmp_path / "mine.py"),))
    player = RolloutWorker(setup, "rollout-1", engine=ScriptedEngine([[5, 6]], max_context=128))
    try:
        player.submit([Task("t", 1)], 1, 1.0)
        (group,) = player.sample(30.0)
        assert group.episodes[0].reward is not None
    finally:
        player.close()


def all_of(player: RolloutWorker, tasks: list[Task]) -> list[Outcome]:
    player.submit(tasks, 1, 1.0)
    groups: list[EpisodeGroup] = []
    while len(groups) < len(tasks):
        groups += player.sample(30.0)
    return [group.episodes[0].outcome for group in groups]


def test_environments_that_hang_hold_up_no_other(hanging: RolloutWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there were threads once: every episode after them failed, for ever. And there may only be so many."""
    hung = all_of(hanging, [Task(f"h{i}", i, data={"hang": True}) for i in range(30)])
    assert {str(one.culprit) for one in hung if isinstance(one, Failure)} == {"tests/Hangs-v0 step"} and len(hung) == 30
    sound = all_of(hanging, tasks(0, 3))
    assert [one for one in sound if isinstance(one, Failure)] == []
    monkeypatch.setattr("burnish.rollout.hung.PER_EPISODE", 1)
    monkeypatch.setattr("burnish.rollout.hung.AT_LEAST", 29)
    with pytest.raises(HungEnvironments, match="30 calls of environments hang past their deadline, 30 of tests/Hangs-v0 step; give"):
        hanging.sample(0.0)
    Hangs.let_go.set()
    for _ in range(6000):
        with contextlib.suppress(HungEnvironments):  # until they have ended
            assert hanging.sample(0.0) == []
            break
        time.sleep(0.01)
    assert len(all_of(hanging, tasks(10, 3))) == 3, "what has ended counts no more"


class Exiting(ScriptedEngine):
    """An engine that ends the event loop it is called on, as no part of ours may."""

    async def generate(self, request: Any) -> Any:
        raise SystemExit("the engine is done")

    async def score(self, sequences: Any) -> Any:
        raise SystemExit("the engine is done")


def exiting(tmp_path: Path) -> RolloutWorker:
    if ENVS.loaded(ENV_ID) is None:
        register_env(ENV_ID, Counted)
    new_model(["say done"] * 20, tmp_path / "model", SIZE)
    setup = WorkerSetup(tmp_path / "model", ENV_ID, rollout=RolloutConfig(), engine=EngineConfig(max_context=128))
    return RolloutWorker(setup, "rollout-1", engine=Exiting([[5, 6]], max_context=128))


def bury(worker: RolloutWorker) -> None:
    """End what was under way on a loop that nothing runs any more."""

    async def end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    for _ in range(3):  # what waits for a task that exits does so too
        with contextlib.suppress(SystemExit):
            worker._loop.run_until_complete(end())
    worker._loop.close()


def test_an_event_loop_that_has_ended_is_said_to_everyone_who_asks(tmp_path: Path) -> None:
    worker = exiting(tmp_path)
    worker.submit(tasks(0, 1), 1, 1.0)
    worker._thread.join(60.0)
    said = "rollout-1 plays no more episodes, its event loop has ended: SystemExit: the engine is done"
    for call in (lambda: worker.sample(0.01), lambda: worker.submit(tasks(2, 1), 1, 1.0), lambda: worker.score([[1]]), worker.close):
        with pytest.raises(WorkerUnfit, match=said):
            call()
    assert worker.engine._lost == "the engine was closed", "its process would live on"  # type: ignore[attr-defined]
    bury(worker)


def test_a_call_under_way_when_the_event_loop_ends_is_told(tmp_path: Path) -> None:
    worker = exiting(tmp_path)
    with pytest.raises(WorkerUnfit, match="its event loop has ended"):
        worker.score([[1, 2]])
    bury(worker)
