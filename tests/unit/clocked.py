"""A fleet and a learner on one clock that only they move: what finishes when is written down, whatever the machine does."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tests.unit.scripted import ScriptedLearner

from burnish.envs.types import Episode, EpisodeGroup, Float32, Int32, Outcome, Reward, Task, Trajectory
from burnish.rollout.config import RolloutConfig
from burnish.rollout.weights import SyncReceipt
from burnish.trainer.batch import TokenBatch
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.rft import RFTPhaseConfig

STREAM = partial(training_tasks, (0, 10_000), 0)


def number(task: Task) -> int:
    """Its position in the stream."""
    return int(task.id.removeprefix("train-"))


def teaches(position: int) -> tuple[Outcome, ...]:
    return Reward(1.0), Reward(0.0)


class Clock:
    now = 0.0


class ClockedFleet:
    """Plays `places` groups at a time, in the order they came, each as long as `lasts` says for its number in the stream.

    A group's first token is sampled when it begins, its last when it ends. began, ended: when, by number. most: groups at once.
    """

    def __init__(self, clock: Clock, lasts: Callable[[int], float], outcomes: Callable[[int], tuple[Outcome, ...]], places: int) -> None:
        self.clock, self.lasts, self.outcomes, self.places = clock, lasts, outcomes, places
        self.queue, self.running = list[Task](), list[tuple[float, int, Task, int]]()
        self.version, self.most = 0, 0
        self.began, self.ended, self.given = dict[int, float](), dict[int, float](), list[int]()

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        assert all(group_size == len(self.outcomes(number(task))) for task in tasks)
        self.given += map(number, tasks)
        self.queue += tasks
        self._begin()
        self.most = max(self.most, len(self.queue) + len(self.running))

    def stop(self) -> None:
        self.queue.clear()
        self.running.clear()

    def next_end(self) -> float:
        return self.running[0][0]

    def poll(self) -> list[EpisodeGroup]:
        """The next that ends, later on the clock if need be."""
        assert self.running, "nothing is under way"
        end, _, task, version = heapq.heappop(self.running)
        self.clock.now = max(self.clock.now, end)
        self.ended[number(task)] = end
        self._begin(end)
        return [self._group(task, version)]

    def sync(self, snapshot: int) -> list[SyncReceipt]:
        self.version = snapshot
        return [SyncReceipt("rollout-1", snapshot, 1, 1, 0.0, 0.0)]

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        return {"rollout-1": [np.full(len(ids) - 1, -0.5, np.float32) for ids in sequences]}

    def _begin(self, at: float | None = None) -> None:
        while self.queue and len(self.running) < self.places:
            task = self.queue.pop(0)
            began = self.clock.now if at is None else at
            self.began[number(task)] = began
            heapq.heappush(self.running, (began + self.lasts(number(task)), number(task), task, self.version))

    def _group(self, task: Task, version: int) -> EpisodeGroup:
        ids, mask = np.array([5, 6, 7], np.int32), np.array([False, True, True])
        versions = np.array([-1, version, self.version], np.int32)
        said = Trajectory(ids, mask, np.array([0, -0.5, -0.5], np.float32), versions)
        outcomes = self.outcomes(number(task))
        return EpisodeGroup(task, tuple(Episode(task, i, (said,), (), outcome, engine="rollout-1") for i, outcome in enumerate(outcomes)))


class ClockedLearner(ScriptedLearner):
    """One update takes `learns` on the clock."""

    def __init__(self, clock: Clock, learns: float) -> None:
        super().__init__()
        self.clock, self.learns = clock, learns

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        self.clock.now += self.learns
        return super().forward_backward(batch, objective)


def clocked_loop(
    phase: RFTPhaseConfig,
    lasts: Callable[[int], float],
    outcomes: Callable[[int], tuple[Outcome, ...]] = teaches,
    learns: float = 1.0,
    places: int = 1_000,
) -> tuple[PolicyLoop, ClockedFleet]:
    """A loop in which the fleet plays on while the learner learns, on their clock."""
    clock = Clock()
    fleet, learner = ClockedFleet(clock, lasts, outcomes, places), ClockedLearner(clock, learns)
    loop = PolicyLoop(fleet, learner, LoopSettings(phase, RolloutConfig(error_budget=1.0), "verdict"), STREAM)

    def alongside(work: Callable[[], Any], meanwhile: Callable[[], bool]) -> Any:
        began = clock.now
        while fleet.running and fleet.next_end() <= began + learns and meanwhile():
            pass
        clock.now = began  # the learner takes its time from there
        return work()

    loop.beside = alongside
    loop.sync()
    return loop, fleet
