"""What a fleet does when it is told to stop while the weights that went out are gone, and when runners are lost for good. Ray is
scripted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from burnish.envs.types import Task
from burnish.trainer.fleet import FleetLimits, RayFleet
from burnish.trainer.rllib import RFTConfig
from burnish.trainer.runners import FleetError

pytestmark = pytest.mark.unit


class Answer:
    """A call of an actor's."""

    def __init__(self, gives: Callable[[], Any]) -> None:
        self.gives = gives


class Method:
    def __init__(self, gives: Callable[[], Any], name: str, asked: list[str]) -> None:
        self._gives, self._name, self._asked = gives, name, asked

    def options(self, **options: Any) -> Method:
        return self

    def remote(self, *arguments: Any) -> Answer:
        self._asked.append(self._name)
        return Answer(self._gives)


class Actor:
    """Dies of being told to drop its work, is there again, and cannot take weights whose node is gone."""

    def __init__(self, dies: BaseException) -> None:
        self.asked: list[str] = []

        def cancel() -> None:
            raise dies

        def update_weights() -> None:
            raise ray.exceptions.ObjectLostError("0" * 56, None, "")

        gives: dict[str, Callable[[], Any]] = {"cancel": cancel, "update_weights": update_weights, "ping": lambda: "pong", "submit": list}
        for name, one in gives.items():
            setattr(self, name, Method(one, name, self.asked))


@pytest.mark.parametrize("how", [ray.exceptions.RayActorError(), ray.exceptions.GetTimeoutError()])
def test_a_runner_that_comes_back_is_not_given_weights_that_went_with_a_learners_node(
    how: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, killed = Actor(how), list[Any]()
    monkeypatch.setattr(ray, "get", lambda call, timeout: call.gives())
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fleet = RayFleet({1: actor}, FleetLimits())
    fleet._snapshot, fleet._version = object(), 3
    fleet.submit([Task("t", 1)], 2, 1.0)
    fleet.stop()
    assert actor.asked == ["submit", "cancel", "ping"] and fleet.restarts == 1 and not fleet.busy
    assert killed == ([] if isinstance(how, ray.exceptions.RayActorError) else [actor])
    (runner,) = fleet._runners
    assert runner.lost_work and runner.life is None, "what it is given next is refused until it has new weights"


def lost(monkeypatch: pytest.MonkeyPatch, moments: list[float], limits: FleetLimits, ping: BaseException | None = None) -> RayFleet:
    """A fleet whose one runner is lost at these moments, in seconds; afterwards it answers a `ping`, or fails so."""
    actor, clock = Actor(ray.exceptions.ActorUnavailableError("restarting", None)), [0.0]

    def get(call: Answer, timeout: float) -> Any:
        if ping is not None and actor.asked[-1] == "ping":
            raise ping
        return call.gives()

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    fleet = RayFleet({1: actor}, limits)
    for number, clock[0] in enumerate(moments):
        fleet.submit([Task(f"t{number}", 1)], 2, 1.0)
        fleet.stop()
    return fleet


def test_restarts_that_are_long_ago_do_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = FleetLimits(restarts=2, restart_window_s=100.0)
    assert lost(monkeypatch, [0, 50, 101, 151, 202, 252], limits).restarts == 6
    with pytest.raises(FleetError, match=r"rollout-1 had to be started anew 3 times within 100 s, and limits\.restarts is 2"):
        lost(monkeypatch, [0, 50, 101, 140], limits)
    assert RFTConfig().max_num_env_runner_restarts == -1, "Ray counts those of a whole life"


def test_a_runner_that_is_dead_for_good_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FleetError, match="rollout-1 died and is not started again") as found:
        lost(monkeypatch, [0], FleetLimits(), ray.exceptions.ActorDiedError())
    assert time.monotonic() == 1.0 and "limits" not in str(found.value)
    with pytest.raises(FleetError, match="rollout-1 died and did not come back within 300 s"):
        lost(monkeypatch, [0], FleetLimits(), ray.exceptions.ActorUnavailableError("restarting", None))


def test_a_node_that_is_gone_is_named_once_and_not_for_what_is_lost_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(ray.exceptions.ActorUnavailableError("restarting", None))
    monkeypatch.setattr(ray, "get", lambda call, timeout: call.gives())
    monkeypatch.setattr("burnish.trainer.fleet.lost_node", lambda node: f"its node {node} is gone" if node else "")
    fleet = RayFleet({1: actor}, FleetLimits(restarts=1))
    fleet._runners[0].node = "a"
    fleet.submit([Task("t0", 1)], 2, 1.0)
    fleet.stop()
    fleet.submit([Task("t1", 1)], 2, 1.0)
    with pytest.raises(FleetError, match=r"rollout-1 had to be started anew 2 times .* limits\.restarts is 1 \(The actor ") as found:
        fleet.stop()
    assert "node" not in str(found.value)
