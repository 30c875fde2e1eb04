"""The rollout worker over a scripted engine: how many episodes run at once, and what is left when they are cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from burnish.envs.contract import ENVS, register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import Message, Task
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.weights import StaleEngine
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

ENV_ID = "tests/Counted-v0"
CONCURRENCY = 3


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


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[RolloutWorker, ScriptedEngine]]:
    if ENVS.loaded(ENV_ID) is None:
        register_env(ENV_ID, Counted)
    Counted.open = Counted.most = 0
    size = ModelSize(hidden=64, layers=1, heads=2, intermediate=64, vocab_size=300, max_position=128)
    new_model(["say done"] * 20, tmp_path / "model", size)
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


def test_work_for_other_weights_is_refused(worker: tuple[RolloutWorker, ScriptedEngine]) -> None:
    player, _ = worker
    with pytest.raises(StaleEngine, match="rollout-1 holds weights 0, and work under 3 was asked for"):
        player.submit(tasks(0, 1), 1, 1.0, version=3)
    with pytest.raises(StaleEngine):
        player.score([[1, 2]], version=3)
    assert player.progress.pending == 0


def test_an_environment_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    size = ModelSize(hidden=64, layers=1, heads=2, intermediate=64, vocab_size=300, max_position=128)
    new_model(["say done"] * 20, tmp_path / "model", size)
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
