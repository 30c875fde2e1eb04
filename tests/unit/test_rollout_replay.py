"""Episodes played again: the same words go through a fresh environment, and what changes is the environment's or the scorer's doing."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from tests.unit.test_recorded_steps import SIZE, TEXTS, scripted

from burnish.envs.contract import register_env
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import EpisodeGroup, Message, Task
from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import reward
from burnish.rewards.types import RewardInput
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.replay import can_replay, replay
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.evaluation.outlook import asked_again
from burnish.trainer.models.importing import new_model

pytestmark = pytest.mark.unit

calls, later = itertools.count(), threading.Event()


class TwoTurns(gymnasium.Env[Any, str]):
    """Asks twice. One that is made `later` asks another question when it `wanders`, and once more when it `lingers`."""

    def __init__(self, wanders: bool = False, lingers: bool = False) -> None:
        self.observation_space, self.action_space = MessagesSpace(), UnicodeText()
        self.odd, self.turns = wanders and later.is_set(), 3 if lingers and later.is_set() else 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.turns
        return (Message("user", f"part {seed} {'limit' if self.odd else 'bore'}"),), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return (() if not self.left else (Message("user", "verdict"),)), len(action) / 100, not self.left, False, {}


@pytest.fixture(scope="module", autouse=True)
def parts() -> None:
    register_env("tests/TwoTurns-v0")(TwoTurns)

    @reward("tests/fair-v1")
    def fair(episode: RewardInput) -> float:
        return float(len(episode.messages[-1].text))

    @reward("tests/moody-v1")
    def moody(episode: RewardInput) -> float:
        return float(next(calls))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "replay"
    new_model(TEXTS, folder, SIZE)
    return folder


def setup(model: Path, scorer: str = "fair", **env: bool) -> WorkerSetup:
    limits = RolloutConfig(max_turns=4, max_tokens_per_turn=12, retries=1)
    rewards = (RewardConfig(use=f"tests/{scorer}-v1"),)
    return WorkerSetup(model, "tests/TwoTurns-v0", env, rewards=rewards, rollout=limits, engine=EngineConfig(max_context=160), seed=5)


def played(given: WorkerSetup) -> list[EpisodeGroup]:
    """Two groups of two."""
    later.clear()
    worker = RolloutWorker(given, "rollout-1", engine=ScriptedEngine(scripted, max_context=160))
    try:
        worker.submit([Task("t-0", 3), Task("t-1", 4)], 2, 1.0)
        groups: list[EpisodeGroup] = []
        while len(groups) < 2:
            groups += worker.sample(10.0)
        return groups
    finally:
        worker.close()


def test_the_same_words_give_the_same_conversation_and_the_same_reward(model: Path) -> None:
    given = setup(model)
    groups = played(given)
    again = replay(given, groups)
    assert [one.first.id for one in again] == [one.again.id for one in again] == [e.id for group in groups for e in group.episodes]
    for one in again:
        assert one.same_answers and one.again.outcome == one.first.outcome
        assert [turn.token_ids.tolist() for turn in one.again.turns] == [turn.token_ids.tolist() for turn in one.first.turns]
    found = asked_again(again)
    assert (found.episodes, found.changed, found.other_answers, found.failed) == (4, 0, 0, 0)


def test_a_scorer_that_changes_its_mind_is_found(model: Path) -> None:
    given = setup(model, "moody")
    found = asked_again(replay(given, played(given)))
    assert (found.changed, found.other_answers) == (4, 0)
    assert "moody was" in found.examples[0]


def test_an_environment_that_answers_otherwise_is_no_change_of_verdict(model: Path) -> None:
    given = setup(model, wanders=True)
    groups = played(given)
    later.set()
    found = asked_again(replay(given, groups))
    assert found.other_answers > 0 and found.changed == 0


def test_an_environment_that_goes_on_where_it_had_ended_is_a_failure_of_its_own(model: Path) -> None:
    given = setup(model, lingers=True)
    groups = played(given)
    later.set()
    again = replay(given, groups)
    outcomes = [one.again.outcome for one in again]
    assert all(isinstance(outcome, Failure) and outcome.kind is FailureKind.ENV_ERROR for outcome in outcomes)
    assert "goes on after turn 2" in str(outcomes[0])


def test_a_group_with_a_failure_is_refused(model: Path) -> None:
    (group, _) = played(setup(model))
    broken = Failure(FailureKind.ENV_ERROR, "tests/TwoTurns-v0", "it broke")
    hurt = EpisodeGroup(group.task, tuple(type(e)(e.task, e.sample, (), e.messages, broken) for e in group.episodes))
    assert can_replay(group) and not can_replay(hurt)
    with pytest.raises(ValueError, match="cannot be played again"):
        replay(setup(model), [hurt])
