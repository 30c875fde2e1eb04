"""The end of an algorithm: learners and runners end or are killed, and no runner is waited for without end. Ray is scripted."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from burnish.trainer.fleet import FleetLimits
from burnish.trainer.rllib import RFT

pytestmark = pytest.mark.unit


class Runner:
    """ends: what becomes of its call of `stop`: it is done, it fails, or it never ends."""

    def __init__(self, ends: Exception | bool) -> None:
        self.ends = ends
        self.stop = SimpleNamespace(remote=lambda: self)  # its call is itself


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def wait(calls: list[Runner], num_returns: int, timeout: float | None) -> tuple[list[Runner], list[Runner]]:
        assert timeout is not None, "without end"
        assert (num_returns, timeout) == (len(calls), 14.0), "for the work it drops, and for its engine"
        return [one for one in calls if one.ends], [one for one in calls if not one.ends]

    def get(call: Runner, timeout: float) -> None:
        if isinstance(call.ends, Exception):
            raise call.ends

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", found.append)
    return found


def algorithm(*runners: Runner) -> tuple[Any, list[str]]:
    """One that has been set up, as far as its end goes, and what its learners were told."""
    group, told = object.__new__(EnvRunnerGroup), list[str]()
    group._local_env_runner = None
    group._worker_manager = FaultTolerantActorManager(list(runners), init_id=1)
    algo = object.__new__(RFT)
    algo.env_runner_group, algo.config = group, SimpleNamespace(limits=FleetLimits(cancel_s=7.0))
    algo.learner_group = SimpleNamespace(shutdown=lambda: told.append("shutdown"))
    return algo, told


def test_a_runner_that_hangs_is_killed_and_not_waited_for(killed: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    well, dead, hung = Runner(True), Runner(ray.exceptions.ActorDiedError()), Runner(False)
    algo, told = algorithm(well, dead, hung)
    with caplog.at_level(logging.WARNING):
        algo.cleanup()
    assert killed == [well, dead, hung] and told == ["shutdown"]
    assert [record.getMessage() for record in caplog.records] == [
        "rollout-3 has not ended within 14 s: it is killed",
        "rollout-2 did not end well: The actor died unexpectedly before finishing this task.",
    ]


def test_an_algorithm_that_has_ended_can_be_ended_again(killed: list[Any]) -> None:
    algo, told = algorithm(Runner(True))
    algo.cleanup()
    algo.cleanup()
    assert len(killed) == 1 and told == ["shutdown"] * 2
