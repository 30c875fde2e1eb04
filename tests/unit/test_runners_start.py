"""The start of runners: for room in the cluster, and for their engines, they are waited for with an end that says what is short. Ray is
scripted."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.rllib.algorithms.algorithm import Algorithm

from burnish.trainer import rllib
from burnish.trainer.fleet import FleetLimits
from burnish.trainer.learner.group import LearnerLimits
from burnish.trainer.rllib import RFT, RFTConfig
from burnish.trainer.runners import FleetError, StartLimits, await_runners

pytestmark = pytest.mark.unit

LIMITS = StartLimits(place_s=10.0, start_s=100.0)
EACH = {"CPU": 1.0, "GPU": 2.0}
NEVER = float("inf")


@dataclass(eq=False)
class Runner:
    """Has a process from one second on, and answers from another one on, or fails with what ended it, or as one that is being restarted
    until it comes back. Its call is itself."""

    placed: float = 0.0
    answers: float = 0.0
    died: Exception | None = None
    comes_back: float = 0.0

    @property
    def ping(self) -> Any:
        return SimpleNamespace(remote=lambda: self)

    @property
    def _actor_id(self) -> Any:
        return SimpleNamespace(hex=lambda: self)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The second that it is; who looks at runners waits for one."""
    now = [0.0]

    def wait(calls: list[Runner], timeout: float) -> tuple[list[Runner], list[Runner]]:
        answered = [one for one in calls if one.answers <= now[0]][:1]
        now[0] += 0.0 if answered else timeout
        return answered, [one for one in calls if one not in answered]

    def get(call: Runner, timeout: float) -> str:
        if call.died is not None:
            raise call.died
        if now[0] < call.comes_back:
            raise ActorUnavailableError("restarting", None)
        return "pong"

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.5, "memory": 1e9})
    monkeypatch.setattr(ray._private.state, "actors", lambda runner: {"Pid": 17 if runner.placed <= now[0] else 0})
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def started(*runners: Runner) -> None:
    await_runners(dict(enumerate(runners, 1)), EACH, LIMITS)


def test_an_engine_has_its_own_time_from_when_it_has_room(clock: list[float]) -> None:
    started(Runner(answers=3.0), Runner(placed=9.0, answers=105.0))
    assert 104.0 <= clock[0] <= 106.0


def test_a_cluster_without_room_is_said_in_time_with_what_is_short(clock: list[float]) -> None:
    no_room = (
        r"the cluster had no room for 2 of 3 engines of 1 CPU, 2 GPU each within limits\.place_s = 10 s; free now, on all nodes together: "
        r"3\.5 CPU, 0 GPU\."
    )
    with pytest.raises(FleetError, match=no_room):
        started(Runner(), Runner(placed=NEVER, answers=NEVER), Runner(placed=13.0, answers=20.0))
    assert clock[0] <= 12.0


def test_an_engine_that_does_not_start_is_named_in_time(clock: list[float]) -> None:
    with pytest.raises(FleetError, match=r"rollout-2 did not start: after 100 s its process is still starting"):
        started(Runner(), Runner(placed=5.0, answers=NEVER))
    assert 105.0 <= clock[0] <= 108.0


def test_an_engine_that_dies_while_it_starts_may_be_started_again_in_its_time(clock: list[float]) -> None:
    started(Runner(comes_back=50.0))
    with pytest.raises(
        FleetError, match=r"rollout-1 did not start: after 100 s its process is still starting, for the first time or again"
    ):
        started(Runner(comes_back=NEVER))


def test_what_ended_a_runner_is_said_at_once(clock: list[float]) -> None:
    wrong = RayActorError(error_msg="The actor died\nray::LLMEnvRunner.__init__() (pid=1)\nValueError: no such model")
    for died, kind, said in (
        (wrong, ValueError, "^no such model$"),
        (ActorDiedError(), FleetError, "rollout-2 did not start: The actor died"),
    ):
        with pytest.raises(kind, match=said):
            started(Runner(placed=NEVER, answers=NEVER), Runner(died=died))
    assert clock[0] == 0.0


def test_runners_are_waited_for_before_rllib_calls_one_and_given_up_when_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLlib's first call of a runner, `get_spaces`, waits without end."""
    done, cls = list[Any](), cast(Any, RFT)

    def setup(algo: Any, config: Any) -> NoReturn:
        algo.env_runner_group = SimpleNamespace(
            _worker_manager=SimpleNamespace(actors=lambda: {1: "runner"}, clear=lambda: done.append("killed"))
        )
        assert not cls._should_create_evaluation_env_runners(config), "Tune asks the class"
        assert not algo._should_create_evaluation_env_runners(config)
        raise AssertionError("RLlib would go on")

    def none_starts(*given: Any) -> NoReturn:
        done.append(given)
        raise FleetError("no room")

    monkeypatch.setattr(Algorithm, "setup", setup)
    monkeypatch.setattr(Algorithm, "cleanup", lambda algo: done.append("cleaned up"))
    monkeypatch.setattr(rllib, "await_runners", none_starts)
    monkeypatch.setattr(rllib, "learner_room", lambda *given: None)
    algo = object.__new__(RFT)
    algo.config = RFTConfig().rft(fleet=FleetLimits(answer_s=6.0), learner_limits=LearnerLimits(place_s=8.0))
    algo.config.env_runners(num_gpus_per_env_runner=2, custom_resources_per_env_runner={"fast": 1})
    algo.config.worker_setup = SimpleNamespace(engine=SimpleNamespace(start_timeout_s=7.0))
    assert not algo.config.validate_env_runners_after_construction, "that waits without end, too"
    with pytest.raises(FleetError, match="no room"):
        algo.setup(algo.config)
    assert done == [({1: "runner"}, {"CPU": 1, "GPU": 2, "fast": 1}, StartLimits(8.0, 13.0)), "killed", "cleaned up"]
