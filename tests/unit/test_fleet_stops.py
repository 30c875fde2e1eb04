"""What a fleet does when it is told to stop while the weights that went out are gone. Ray is scripted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray

from burnish.envs.types import Task
from burnish.trainer.fleet import FleetLimits, RayFleet

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
