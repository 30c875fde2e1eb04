"""A learner that hangs or dies is waited for once, whatever the step that met it does next. Ray is scripted."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from tests.unit.scripted import ScriptedLearner
from tests.unit.test_trainer_demonstrations import Listed

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task, Trajectory
from burnish.trainer.demonstrations import Demonstrations
from burnish.trainer.learner import group as module
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.group import LearnerGroup, LearnerLimits, LearnerLost
from burnish.trainer.objectives.objective import objective_of
from burnish.trainer.objectives.registry import find_advantage
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.updates import Updates

pytestmark = pytest.mark.unit


class ScriptedRay:
    """One learner's actor, and what a driver asks of Ray for it. What is called is answered by a scripted learner, until the call
    `hangs_at` of that name, which is never answered, nor is any after it. waited: for which calls in vain."""

    def __init__(self, hangs_at: tuple[str, int], dies: bool) -> None:
        self.learner, self.hangs_at, self.dies, self.gone = ScriptedLearner(), hangs_at, dies, False
        self.calls, self.waited = list[str](), list[str]()

    def remote(self, *arguments: Any) -> ScriptedRay:
        return self  # of `ray.remote(LearnerActor)`, of its options, and of the actor

    def options(self, **kwargs: Any) -> ScriptedRay:
        return self

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> tuple[str, Any]:
            self.calls.append(method)
            self.gone = self.gone or (method == self.hangs_at[0] and self.calls.count(method) == self.hangs_at[1])
            if self.gone:
                return method, None
            at_start = {"node": "a", "start": 0}
            return method, at_start[method] if method in at_start else getattr(self.learner, method)(*arguments)

        bound = SimpleNamespace(remote=call)
        bound.options = lambda **kwargs: bound
        return bound

    def wait(self, calls: Sequence[tuple[str, Any]], timeout: float) -> tuple[list[Any], list[Any]]:
        if self.gone and not self.dies:
            self.waited += [method for method, _ in calls]
            return [], list(calls)
        return list(calls), []

    def get(self, calls: Sequence[tuple[str, Any]]) -> list[Any]:
        if self.gone:
            self.waited += [method for method, _ in calls]
            raise ray.exceptions.ActorDiedError
        return [answer for _, answer in calls]


def group_over(scripted: ScriptedRay, monkeypatch: pytest.MonkeyPatch) -> LearnerGroup:
    for name in ("wait", "get"):
        monkeypatch.setattr(ray, name, getattr(scripted, name))
    monkeypatch.setattr(ray, "remote", lambda of: scripted)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(module, "learner_room", lambda *given: None)
    return LearnerGroup(Path("m"), LearnerConfig(), 0, 0.0, LearnerLimits())


def episode(sample: int, reward: float) -> Episode:
    tokens, trained = np.array([1, 2, 3], np.int32), np.array([False, True, True])
    trajectory = Trajectory(tokens, trained, np.array([0, -0.1, -0.2], np.float32), np.array([-1, 0, 0], np.int32))
    return Episode(Task("train-0", 0), sample, (trajectory,), (), Reward(reward, {"env": reward}), engine="e")


GROUP = EpisodeGroup(Task("train-0", 0), (episode(0, 0.0), episode(1, 1.0)))
TABLE = RFTPhaseConfig.model_validate({"group_size": 2, "groups_per_step": 1, "lr": 1e-5, "replay": {"data": "x.jsonl", "share": 0.5}})


@pytest.mark.parametrize("dies", [False, True], ids=["hangs", "dies"])
@pytest.mark.parametrize(
    ("at", "beside"),
    [(("forward_backward", 1), False), (("step", 1), False), (("forward_backward", 2), True)],
    ids=["in the pass", "in the update", "in the demonstrations"],
)
def test_a_lost_learner_is_waited_for_once(at: tuple[str, int], beside: bool, dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = ScriptedRay(at, dies)
    group = group_over(scripted, monkeypatch)
    shown = Demonstrations(Listed(), 0.1, Fraction(1, 2)) if beside else None
    updates = Updates(find_advantage("grpo", {}), TABLE.objective, objective_of(TABLE.objective, 1.0), TABLE, 1.0, shown)
    says = "the learner died" if dies else "did not answer within 3600 s"
    with pytest.raises(LearnerLost, match=says):
        updates.learn(group, (GROUP,), 0, lambda batch, measured: None, may_skip=True)
    assert scripted.waited == [at[0]]
    with pytest.raises(LearnerLost, match=says):
        group.snapshot()
    assert scripted.waited == [at[0]] and "bucket" not in scripted.calls
