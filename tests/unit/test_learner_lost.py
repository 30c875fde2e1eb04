"""A learner that hangs or dies is waited for once, whatever the step that met it does next. Ray is scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from burnish.trainer.updates import Updates, credit

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


class OneFailsAlone:
    """Two learners' actors, and what a driver asks of Ray for them: the first fails in its pass, the second waits for it without end."""

    def __init__(self) -> None:
        self.calls, self.killed, self.made = list[str](), list[int](), 0

    def options(self, **kwargs: Any) -> OneFailsAlone:
        return self

    def remote(self, rank: int, *arguments: Any) -> Any:
        methods = ("node", "listen", "start", "forward_backward", "discard", "begin_phase")
        return SimpleNamespace(rank=rank, **{name: self._method(name, rank) for name in methods})

    def _method(self, name: str, rank: int) -> Any:
        def call(*arguments: Any) -> tuple[str, int]:
            self.calls.append(name)
            return name, rank

        bound = SimpleNamespace(remote=call)
        bound.options = lambda **kwargs: bound
        return bound

    def wait(self, calls: list[tuple[str, int]], timeout: float) -> tuple[list[Any], list[Any]]:
        done = [call for call in calls if call != ("forward_backward", 1)]
        return done[:1], [call for call in calls if call not in done[:1]]

    def get(self, calls: Sequence[tuple[str, int]]) -> list[Any]:
        if self.killed:
            raise ray.exceptions.ActorDiedError
        if ("forward_backward", 0) in calls:
            raise ray.exceptions.RayTaskError("forward_backward", "", MemoryError("a gibibyte is not there"))
        return [{"node": "a", "listen": ("h", 1), "start": 0}.get(name) for name, _ in calls]


def test_an_error_that_ends_all_learners_is_not_hidden_by_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = OneFailsAlone()
    for name in ("wait", "get"):
        monkeypatch.setattr(ray, name, getattr(scripted, name))
    monkeypatch.setattr(ray, "remote", lambda of: scripted)
    monkeypatch.setattr(ray, "kill", lambda actor: scripted.killed.append(actor.rank))
    monkeypatch.setattr(module, "learner_room", lambda *given: None)
    group = LearnerGroup(Path("m"), LearnerConfig(), 0, 0.0, LearnerLimits(), learners=2)
    other = Task("train-1", 1)
    groups = (GROUP, EpisodeGroup(other, tuple(replace(one, task=other) for one in GROUP.episodes)))
    batch, *_ = credit(groups, find_advantage("grpo", {}), TABLE.objective, TABLE, group.score)
    with pytest.raises(MemoryError, match="a gibibyte is not there"):
        try:
            group.forward_backward(batch, objective_of(TABLE.objective, 1.0))
        finally:
            group.discard()  # as `Updates` does where an update raises
    assert scripted.killed == [0, 1]
    with pytest.raises(LearnerLost, match="all learners were ended: one had failed alone"):
        group.begin_phase(LearnerConfig().optimizer)


def test_a_learner_that_went_with_its_node_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_over(ScriptedRay(("restore", 1), dies=True), monkeypatch)
    book = {"NodeID": "a", "NodeManagerAddress": "10.0.0.7", "NodeManagerHostname": "gpu-3", "Alive": False}
    monkeypatch.setattr(ray, "nodes", lambda: [{**book, "NodeID": "b", "NodeManagerAddress": "10.0.0.9"}, book])
    with pytest.raises(LearnerLost, match=r"the learner died: its node 10\.0\.0\.7 \(gpu-3, a\) is gone$"):
        group.restore_from_path("checkpoint")
