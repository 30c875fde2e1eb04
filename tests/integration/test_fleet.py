"""The fleet over runners that do what they are told: deadlines, lost engines, tasks that must not be mixed up. Ray is faked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Outcome, Reward, Task
from burnish.rollout.hung import HungEnvironments
from burnish.rollout.weights import StaleEngine, SyncReceipt
from burnish.rollout.worker import Progress
from burnish.trainer import fleet as fleets
from burnish.trainer import owing, turnover
from burnish.trainer.fleet import FleetLimits, RayFleet
from burnish.trainer.playing import run_tasks
from burnish.trainer.runners import FleetError

pytestmark = pytest.mark.integration

LOST = Failure(FailureKind.ENGINE_LOST, "rollout-1", "out of memory")
HUNG = Failure(FailureKind.ENGINE_TIMEOUT, "rollout-1", "request t0/0 not answered within 600 s")


@dataclass(eq=False)
class Call:
    """A reference: what `ray.get` gives, or raises; takes_s: after how many seconds."""

    value: Any = None
    ready: bool = True
    takes_s: float = 0.0


class FakeRay:
    def __init__(self) -> None:
        self.killed: list[Any] = []

    def get(self, call: Any, timeout: float) -> Any:
        calls = call if isinstance(call, list) else [call]
        for one in calls:
            if one.takes_s > timeout:
                raise GetTimeoutError("Get timed out: some object(s) not ready.")
            if isinstance(one.value, Exception):
                raise one.value
        return [one.value for one in call] if isinstance(call, list) else call.value

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        return [call for call in calls if call.ready], [call for call in calls if not call.ready]

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed.append(actor)
        actor.die()


def group(task: Task, size: int, outcome: Outcome) -> EpisodeGroup:
    return EpisodeGroup(task, tuple(Episode(task, i, (), (), outcome) for i in range(size)))


@dataclass(eq=False)
class Actor:
    """A runner that finishes what it was given when it is asked. outcomes: what its lives give every episode, one life after another."""

    outcomes: list[Outcome] = field(default_factory=lambda: [Reward(1.0)])
    ready: bool = True
    given: list[Task] = field(default_factory=list)
    received: list[Any] = field(default_factory=list)
    ended: int = 0
    life: str = "1"
    holds: int = 0
    sync_fails: list[Exception] = field(default_factory=list)
    node: str = ""

    def die(self) -> None:
        self.given.clear()
        self.life += "+"
        self.holds = 0
        self.outcomes = self.outcomes[1:] or self.outcomes

    def __getattr__(self, name: str) -> Any:
        methods: dict[str, Callable[..., Any]] = {
            "submit": lambda tasks, size, temperature, version, life: self._meant(life, version) or self._submit(tasks),
            "sample": lambda wait_s, life: self._meant(life) or self._sample(wait_s),
            "score": lambda rows, version, life: self._meant(life) or [[0.0] for _ in rows],
            "update_weights": lambda snapshot, timeout_s: (
                self.sync_fails.pop(0) if self.sync_fails else self._update_weights(snapshot, timeout_s)
            ),
            "cancel": self.given.clear,
            "ping": lambda: "pong",
            "progress": lambda: Progress(0, 0, 0, calls=self.ended, under_way={"environment": 3, "rewards": 1}),
        }
        if name not in methods:
            raise AttributeError(name)
        call = methods[name]
        remote = lambda *given: Call(call(*given), self.ready or name != "sample")  # noqa: E731
        return SimpleNamespace(remote=remote, options=lambda name: SimpleNamespace(remote=remote))

    def _update_weights(self, snapshot: int, timeout_s: float) -> SyncReceipt:
        self.received.append(snapshot)
        self.holds = snapshot
        return SyncReceipt("rollout-1", snapshot, 1, 1, 0.0, 0.0, life=self.life, node=self.node)

    def _submit(self, tasks: Sequence[Task]) -> list[Task]:
        self.given += tasks
        return []

    def _meant(self, life: str | None, version: int | None = None) -> RayTaskError | None:
        meant = life in (None, self.life) and version in (None, self.holds)
        return None if meant else RayTaskError("call", "", StaleEngine("rollout-1 was started anew"))

    def _sample(self, wait_s: float) -> list[EpisodeGroup]:
        done, self.given[:] = list(self.given) if self.ready else [], self.given if not self.ready else []
        return [group(task, 2, self.outcomes[0]) for task in done]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for module in (fleets, owing, turnover):
        monkeypatch.setattr(module, "ray", fake)
    return fake


def clock(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    ticks = itertools.count(0.0, step_s)
    monkeypatch.setattr("burnish.trainer.fleet.time.monotonic", lambda: next(ticks))


TASKS = [Task(f"t{i}", i) for i in range(4)]


def test_an_answer_that_was_only_not_read_yet_is_not_late(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 100.0)  # every look at the clock is past every deadline, as after another runner's long restart
    fleet = RayFleet({1: Actor(), 2: Actor()}, FleetLimits(answer_s=60.0))
    assert {group.task.id for group in run_tasks(fleet, TASKS, 2, 1.0)} == {task.id for task in TASKS}
    assert ray.killed == [] and fleet.restarts == 0


def test_a_runner_that_does_not_answer_is_replaced_and_plays_what_it_owed(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = Actor(ready=False)
    hung.die = lambda: setattr(hung, "ready", True)  # type: ignore[method-assign]
    fleet = RayFleet({1: hung}, FleetLimits(answer_s=60.0))
    fleet.sync(7)
    clock(monkeypatch, 30.0)
    assert len(list(run_tasks(fleet, TASKS, 2, 1.0))) == 4
    assert ray.killed == [hung] and fleet.restarts == 1 and hung.received == [7, 7]


@pytest.mark.parametrize("failure", [LOST, HUNG], ids=["gone", "hung"])
def test_a_runner_whose_engine_is_gone_or_hangs_is_replaced_and_its_episodes_played_again(ray: FakeRay, failure: Failure) -> None:
    broken = Actor(outcomes=[failure, Reward(1.0)])
    fleet = RayFleet({1: broken}, FleetLimits())
    fleet.sync(3)
    groups = list(run_tasks(fleet, TASKS, 2, 1.0))
    assert all(episode.reward is not None for one in groups for episode in one.episodes)
    assert ray.killed == [broken] and broken.received == [3, 3]


def test_a_runner_whose_environments_hang_is_replaced_and_the_log_names_them(ray: FakeRay, caplog: pytest.LogCaptureFixture) -> None:
    stuck, why = Actor(), HungEnvironments("257 calls of environments hang past their deadline, 257 of my/Env-v0 step")
    sample, raised = stuck._sample, list[bool]()

    def once(wait_s: float) -> Any:
        if raised:
            return sample(wait_s)
        raised.append(True)
        return RayTaskError("sample", "", why)

    stuck._sample = once  # type: ignore[method-assign]
    fleet = RayFleet({1: stuck}, FleetLimits())
    fleet.sync(3)
    assert len(list(run_tasks(fleet, TASKS, 2, 1.0))) == 4
    assert ray.killed == [stuck] and fleet.restarts == 1 and stuck.received == [3, 3]
    assert f"rollout-1 is replaced: {why}" in caplog.text


@pytest.mark.parametrize("other", [Reward(0.5), Failure(FailureKind.ENV_ERROR, "bench", "unplugged")], ids=["reward", "other failure"])
def test_a_group_of_which_one_member_timed_out_is_given_as_it_is(ray: FakeRay, other: Outcome) -> None:
    """An engine that answered one of them is there; what the others are is for the loop to say."""
    actor = Actor()
    actor._sample = lambda wait_s: [  # type: ignore[method-assign]
        EpisodeGroup(task, (Episode(task, 0, (), (), HUNG), Episode(task, 1, (), (), other))) for task in actor.given
    ]
    fleet = RayFleet({1: actor}, FleetLimits())
    (found,) = run_tasks(fleet, TASKS[:1], 2, 1.0)
    assert [episode.outcome for episode in found.episodes] == [HUNG, other]
    assert ray.killed == [] and fleet.restarts == 0


def test_a_runner_that_stays_away_is_named_with_what_it_was_replaced_for(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Actor(outcomes=[HUNG])
    gone.die = lambda: setattr(gone, "ping", SimpleNamespace(remote=lambda: Call(GetTimeoutError("no answer"))))  # type: ignore[method-assign]
    clock(monkeypatch, 200.0)
    monkeypatch.setattr("burnish.trainer.fleet.time.sleep", lambda seconds: None)
    with pytest.raises(FleetError, match=r"rollout-1 died and did not come back within 300 s \(engine_timeout in rollout-1: request t0/0"):
        list(run_tasks(RayFleet({1: gone}, FleetLimits(stall_s=1e9, answer_s=1e9)), TASKS[:1], 2, 1.0))


BOOKS = [
    {"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.7", "NodeManagerHostname": "worker-3", "Alive": False},
    {"NodeID": "b" * 56, "NodeManagerAddress": "10.0.0.8", "NodeManagerHostname": "worker-4", "Alive": True},
]
GONE = r"its node 10\.0\.0\.7 \(worker-3, aaaaaaaaaaaa\) is gone"


def test_a_runner_whose_node_is_lost_is_named_with_it(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("burnish.trainer.nodes.ray", SimpleNamespace(nodes=lambda: BOOKS))
    monkeypatch.setattr("burnish.trainer.fleet.time.sleep", lambda seconds: None)
    moved = Actor(node="a" * 56, outcomes=[HUNG, Reward(1.0)])
    fleet = RayFleet({1: moved}, FleetLimits())
    fleet.sync(3)
    moved.node = "b" * 56
    assert len(list(run_tasks(fleet, TASKS, 2, 1.0))) == 4
    assert re.search(f"rollout-1 is back on another: {GONE}", caplog.text)

    caplog.clear()
    away = Actor(node="a" * 56, outcomes=[HUNG])
    away.die = lambda: setattr(away, "ping", SimpleNamespace(remote=lambda: Call(ActorDiedError())))  # type: ignore[method-assign]
    fleet = RayFleet({1: away}, FleetLimits())
    fleet.sync(3)
    with pytest.raises(FleetError, match=rf"rollout-1 died and is not started again \({GONE}\): "):
        list(run_tasks(fleet, TASKS[:1], 2, 1.0))


def test_whoever_stops_early_leaves_nothing_for_the_next(ray: FakeRay) -> None:
    fleet = RayFleet({1: Actor()}, FleetLimits(concurrency=1))
    running = run_tasks(fleet, TASKS, 2, 1.0)
    next(running)
    running.close()
    assert not fleet.busy
    assert [group.task.id for group in run_tasks(fleet, [Task("other", 9)], 2, 1.0)] == ["other"]


def test_one_task_is_not_under_way_twice(ray: FakeRay) -> None:
    fleet = RayFleet({1: Actor()}, FleetLimits())
    fleet.submit(TASKS, 2, 1.0)
    with pytest.raises(ValueError, match="task t0 is under way already"):
        fleet.submit(TASKS[:1], 2, 1.0)


def test_asking_for_nothing_is_an_error_and_no_endless_wait(ray: FakeRay) -> None:
    with pytest.raises(FleetError, match="no task is under way"):
        RayFleet({1: Actor()}, FleetLimits()).poll()


def test_a_fleet_in_which_no_episode_ends_stops(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Actor()
    silent._sample = lambda wait_s: []  # type: ignore[method-assign]
    clock(monkeypatch, 400.0)
    fleet = RayFleet({1: silent}, FleetLimits(stall_s=600.0, answer_s=1e9))
    fleet.submit(TASKS, 2, 1.0)
    silent.ended = 1
    assert fleet.poll() == []  # a call ended, of an episode that is tried again for all we know, so it goes on
    owing = "rollout-1 owes 4 groups, calls under way: 3 of the environment, 1 of the rewards"
    with pytest.raises(FleetError, match=f"no call of an engine, an environment or a reward ended for 600 s: {owing}"):
        for _ in range(5):
            fleet.poll()


def test_a_runner_that_was_restarted_before_new_weights_came_plays_what_it_owed_again(ray: FakeRay) -> None:
    """With weights that match it passed for the one that died, and had none of its tasks: the run waited for them in vain."""
    first, second = Actor(), Actor()
    fleet = RayFleet({1: first, 2: second}, FleetLimits())
    fleet.sync(3)
    fleet.submit(TASKS, 2, 1.0)
    assert first.given
    first.die()
    fleet.sync(4)
    assert fleet.restarts == 1
    found = [group.task.id for _ in range(4) if fleet.busy for group in fleet.poll()]
    assert sorted(found) == [task.id for task in TASKS] and ray.killed == [] and fleet.restarts == 1


def test_a_runner_that_was_restarted_between_two_polls_is_noticed_by_the_next(ray: FakeRay) -> None:
    """Also where it holds the weights that are asked for, as one does before the first update."""
    fleet = RayFleet({1: (actor := Actor())}, FleetLimits())
    fleet.sync(0)
    fleet.submit(TASKS[:2], 2, 1.0)
    actor.die()
    found = [group.task.id for _ in range(4) if fleet.busy for group in fleet.poll()]
    assert sorted(found) == ["t0", "t1"] and fleet.restarts == 1 and actor.received == [0, 0]


def test_a_runner_that_was_restarted_before_it_scores_gets_the_weights_first(ray: FakeRay) -> None:
    fleet = RayFleet({1: (actor := Actor())}, FleetLimits())
    fleet.sync(3)
    actor.die()
    assert fleet.score([]) == {"rollout-1": []} and actor.received == [3, 3] and fleet.restarts == 1


def test_a_runner_that_dies_again_while_it_gets_the_weights_is_named(ray: FakeRay) -> None:
    fleet = RayFleet({1: (actor := Actor())}, FleetLimits())
    fleet.sync(3)
    actor.die()
    actor.sync_fails = [ActorDiedError()]
    with pytest.raises(FleetError, match="rollout-1 did not score the probe of the weight sync, 2 times: The actor died unexpectedly"):
        fleet.score([])


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        (RayTaskError("call", "", TimeoutError("the engine drains")), "it did not take new weights within 600 s: the engine drains"),
        (ActorDiedError(), "it did not take new weights: The actor died unexpectedly before finishing this task."),
    ],
    ids=["hangs", "dies"],
)
def test_a_runner_that_is_lost_too_often_is_named_with_what_became_of_it_last(ray: FakeRay, fails: Exception, why: str) -> None:
    """Not with what an earlier one was replaced for."""
    fleet = RayFleet({1: (actor := Actor([LOST, Reward(1.0)]))}, FleetLimits(restarts=1))
    fleet.sync(3)
    assert len(list(run_tasks(fleet, TASKS, 2, 1.0))) == len(TASKS) and fleet.restarts == 1
    actor.sync_fails = [fails]
    with pytest.raises(FleetError, match=r"rollout-1 had to be started anew 2 times within 3600 s, and limits\.restarts is 1") as found:
        fleet.sync(4)
    assert str(found.value).endswith(f" ({why})")


def test_a_runner_that_does_not_drop_its_work_is_replaced(ray: FakeRay) -> None:
    """What it had would pass for what it is given next."""
    stuck = Actor()
    stuck.cancel = SimpleNamespace(remote=lambda: Call(RayTaskError("cancel", "", TimeoutError())))  # type: ignore[attr-defined]

    def die(die: Callable[[], None] = stuck.die) -> None:
        die()
        del stuck.cancel

    stuck.die = die  # type: ignore[method-assign]
    fleet = RayFleet({1: stuck}, FleetLimits())
    fleet.sync(3)
    fleet.submit(TASKS, 2, 1.0)
    fleet.stop()
    assert ray.killed == [stuck] and stuck.received == [3] and stuck.given == [] and not fleet.busy
    assert [group.task.id for group in run_tasks(fleet, [Task("other", 9)], 2, 1.0)] == ["other"]


def test_a_runner_that_dies_while_its_work_is_dropped_is_counted_once(ray: FakeRay) -> None:
    actor = Actor()

    def cancel() -> Call:
        del actor.cancel
        actor.die()
        return Call(ActorDiedError())

    actor.cancel = SimpleNamespace(remote=cancel)  # type: ignore[attr-defined]
    fleet = RayFleet({1: actor}, FleetLimits(restarts=1))
    fleet.sync(3)
    fleet.submit(TASKS, 2, 1.0)
    fleet.stop()
    assert [group.task.id for group in run_tasks(fleet, [Task("other", 9)], 2, 1.0)] == ["other"]
    assert fleet.restarts == 1 and actor.received == [3, 3]


@pytest.mark.parametrize(("cancel_s", "killed"), [(90.0, False), (10.0, True)])
def test_a_runner_whose_environments_take_as_long_to_close_as_they_may_is_waited_for(ray: FakeRay, cancel_s: float, killed: bool) -> None:
    closing = Actor()

    def cancel() -> Call:
        closing.given.clear()
        return Call(takes_s=80.0)

    def die(die: Callable[[], None] = closing.die) -> None:
        die()
        del closing.cancel

    closing.cancel, closing.die = SimpleNamespace(remote=cancel), die  # type: ignore[attr-defined, method-assign]
    fleet = RayFleet({1: closing}, FleetLimits(answer_s=60.0, cancel_s=cancel_s))
    fleet.sync(3)
    fleet.submit(TASKS, 2, 1.0)
    fleet.stop()
    assert bool(ray.killed) is killed and not fleet.busy
