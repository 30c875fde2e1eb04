"""A fleet whose runners come and go while others play. Ray, its nodes and the clock are scripted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from tests.integration.test_fleet import TASKS, Actor, Call, FakeRay
from tests.unit.clocked import STREAM, number
from tests.unit.scripted import ScriptedLearner
from tests.unit.test_schedules import heavy

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task, Trajectory
from burnish.rollout.config import RolloutConfig
from burnish.rollout.weights import SyncProofError
from burnish.trainer import fleet as fleets
from burnish.trainer import nodes, owing, turnover
from burnish.trainer.fleet import FleetLimits, RayFleet
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.playing import run_tasks
from burnish.trainer.restarts import Restarts
from burnish.trainer.runners import FleetError
from burnish.trainer.schedule.admission import Rollouts
from burnish.trainer.turnover import AGAIN_S, LOOK_S, PLACE_S, RunnerSource

pytestmark = pytest.mark.unit

NODE: dict[str, Any] = {"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.7", "NodeManagerHostname": "worker-3", "Alive": True}
MANY = [Task(f"m{i}", i) for i in range(8)]


class Later:
    """An answer that is there once a runner is ready, or up, and is made when it is asked for."""

    takes_s = 0.0

    def __init__(self, is_ready: Callable[[], bool], gives: Callable[[], Any]) -> None:
        self._is_ready, self._gives = is_ready, gives

    @property
    def ready(self) -> bool:
        return self._is_ready()

    @cached_property
    def value(self) -> Any:
        return self._gives()


class Runner(Actor):
    """ready: whether what it plays ends. up: whether it has started. stopped: whether it has ended what it is told to end."""

    up = True
    stopped = True
    told: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name == "ping":
            return SimpleNamespace(remote=lambda: Later(lambda: self.up, lambda: "pong"))
        if name == "sample":
            sample = SimpleNamespace(remote=lambda wait_s, life: Later(lambda: self.ready, lambda: self._sample(wait_s)))
            return SimpleNamespace(options=lambda name: sample)
        if name == "stop":
            return SimpleNamespace(remote=lambda: self._stop())
        return super().__getattr__(name)

    def _stop(self) -> Call:
        self.told = (*self.told, "stop")
        return Call(None, self.stopped)


class Cluster:
    """What there is room for, and who came and went. next: the runner that is started next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ray, self.now, self.room, self.placed = FakeRay(), 0.0, True, True
        self.next: Runner = Runner()
        self.make: Callable[[int], Runner] | None = None
        self.started: list[int] = []
        self.forgotten: list[int] = []
        self.nodes: list[dict[str, Any]] = [dict(NODE)]
        self.draining: dict[str, int] = {}
        for module in (fleets, owing, turnover):
            monkeypatch.setattr(module, "ray", self.ray)
        state = SimpleNamespace(
            state=SimpleNamespace(get_draining_nodes=lambda: self.draining), available_resources_per_node=lambda: {"a" * 56: {"CPU": 1.0}}
        )
        monkeypatch.setattr(nodes, "ray", SimpleNamespace(nodes=lambda: self.nodes, _private=SimpleNamespace(state=state)))
        monkeypatch.setattr(turnover, "has_room", lambda each: self.room)
        monkeypatch.setattr(turnover, "has_process", lambda actor: self.placed)
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", lambda seconds: setattr(self, "now", self.now + seconds))

    def fleet(self, runners: list[Runner], least: int, most: int, tries: int = 5) -> RayFleet:
        count = len(runners)

        def start() -> tuple[int, Any]:
            self.started.append(count + 1 + len(self.started))
            return self.started[-1], self.next if self.make is None else self.make(self.started[-1])

        source = RunnerSource(start, self.forgotten.append, {"CPU": 1.0}, 100.0, 50.0, 20.0, Restarts(tries, 3600.0))
        limits = FleetLimits(concurrency=1, stall_s=1e9, answer_s=1e9, restart_s=30.0, min_runners=least, max_runners=most)
        fleet = RayFleet(dict(enumerate(runners, 1)), limits, source)
        fleet.sync(3)
        return fleet

    def poll(self, fleet: RayFleet, times: int = 1, until: Callable[[], bool] = lambda: False) -> list[str]:
        """The tasks that finish in so many polls, each some seconds after the one before."""
        found: list[str] = []
        for _ in range(times):
            if not fleet.busy or until():
                break
            self.now += LOOK_S
            found += [group.task.id for group in fleet.poll()]
        return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_a_runner_joins_once_it_is_up_and_holds_the_weights_of_the_others(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, cluster.next = Runner(ready=False), Runner()
    cluster.next.up = False
    fleet = cluster.fleet([first], 1, 2)
    fleet.submit(MANY, 2, 1.0)
    cluster.poll(fleet, 3)
    assert cluster.started == [2] and cluster.next.received == [] and set(fleet.runners) == {1}, "nobody waits for it"
    cluster.next.up = True
    cluster.poll(fleet)
    fleet.sync(4)  # while it takes those of before
    assert cluster.next.received == [3]
    cluster.poll(fleet, 2)
    assert cluster.next.received == [3, 4] and set(fleet.runners) == {1, 2} and caplog.messages == ["rollout-2 has joined: 2 engines"]
    found = cluster.poll(fleet, 9, lambda: not cluster.next.given and not fleet._waiting)
    assert set(found) and not set(found) & {task.id for task in first.given}
    first.ready = True
    found += cluster.poll(fleet, 9)
    assert sorted(found) == [task.id for task in MANY] and cluster.started == [2], "there are as many as are wanted"


def test_a_runner_that_does_not_prove_its_weights_plays_nothing(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, cluster.next = Runner(ready=False), Runner()
    refused, other = cluster.next, Runner()
    refused.sync_fails = [RayTaskError("update", "changed lm_head.weight", SyncProofError())]
    fleet = cluster.fleet([first], 1, 2)
    fleet.submit(TASKS, 2, 1.0)
    cluster.poll(fleet, 2)
    assert caplog.messages == ["rollout-2 does not join, and the run goes on without it: changed lm_head.weight"]
    assert (cluster.ray.killed, cluster.forgotten, refused.given) == ([refused], [2], [])
    cluster.next, began = other, cluster.now
    cluster.poll(fleet, 99, lambda: set(fleet.runners) == {1, 3})
    assert AGAIN_S <= cluster.now - began <= AGAIN_S + 5 * LOOK_S, "the next is tried after a while"


@pytest.mark.parametrize("placed", [True, False])
def test_a_runner_that_does_not_come_up_is_given_up_in_time(cluster: Cluster, placed: bool, caplog: pytest.LogCaptureFixture) -> None:
    first, cluster.next, cluster.placed = Runner(ready=False), Runner(), placed
    cluster.next.up = False
    fleet = cluster.fleet([first], 1, 2, tries=0)
    fleet.submit(TASKS, 2, 1.0)
    cluster.poll(fleet, 99, lambda: bool(cluster.forgotten))
    limit = 100.0 if placed else PLACE_S
    assert limit <= cluster.now <= limit + 4 * LOOK_S
    late = "rollout-2 does not join, and the run goes on without it: it is not up after 100 s"
    assert caplog.messages == ([late] if placed else []), "whose room somebody else took is no fault"
    cluster.poll(fleet, 60)
    assert len(cluster.started) == (1 if placed else 3), "and after too many faults nobody tries again"


def test_one_that_dies_while_it_starts_is_asked_again_and_one_without_room_is_not_started(cluster: Cluster) -> None:
    first, cluster.room = Runner(ready=False), False
    fleet = cluster.fleet([first], 1, 2)
    fleet.submit(TASKS, 2, 1.0)
    cluster.poll(fleet, 5)
    assert cluster.started == []
    pings = [Call(ActorUnavailableError("restarting", None)), Call("pong")]
    cluster.next.ping = SimpleNamespace(remote=lambda: pings.pop(0))  # type: ignore[attr-defined]
    cluster.room = True
    cluster.poll(fleet, 5)
    assert set(fleet.runners) == {1, 2} and not pings


def test_who_is_too_many_finishes_what_it_plays_and_gets_nothing_more(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Runner(ready=False), Runner(ready=False)
    fleet = cluster.fleet([first, second], 2, 2)
    fleet.submit(MANY, 2, 1.0)
    mine = [task.id for task in second.given]
    fleet.scale(1)
    cluster.poll(fleet, 3)
    fleet.sync(4)
    assert second.received == [3, 4] and set(fleet.runners) == {1, 2} and [task.id for task in second.given] == mine
    second.ready = True
    found = cluster.poll(fleet, 3)
    assert found == mine and set(fleet.runners) == {1} and second.told == ("stop",)
    assert caplog.messages == ["rollout-2 has left, since fewer are asked for: 1 engine"]
    first.ready = True
    assert sorted(found + cluster.poll(fleet, 20)) == [task.id for task in MANY]
    assert (cluster.ray.killed, cluster.forgotten, cluster.started) == ([second], [2], [])


def test_one_that_was_to_leave_stays_where_more_are_asked_for_again(cluster: Cluster) -> None:
    first, second = Runner(ready=False), Runner(ready=False)
    fleet = cluster.fleet([first, second], 2, 2)
    fleet.submit(MANY, 2, 1.0)
    fleet.scale(1)
    cluster.poll(fleet)
    fleet.scale(2)
    first.ready = second.ready = True
    assert len(cluster.poll(fleet, 20)) == 8 and set(fleet.runners) == {1, 2} and len(cluster.ray.killed) == 0
    with pytest.raises(ValueError, match="0 runners play nothing"):
        fleet.scale(0)


def lose(cluster: Cluster, runner: Runner, node: dict[str, Any] | None = None) -> None:
    """Its node is gone, the first unless it is given, and it is being restarted, in vain."""
    (node or cluster.nodes[0])["Alive"] = False
    died = Call(ActorDiedError())
    for name in ("sample", "submit", "update_weights", "score"):
        setattr(runner, name, SimpleNamespace(options=lambda name: SimpleNamespace(remote=lambda *given: died)))
    runner.cancel = SimpleNamespace(remote=lambda: died)  # type: ignore[attr-defined]
    runner.ping = SimpleNamespace(remote=lambda: Call(GetTimeoutError("no answer")))  # type: ignore[attr-defined]


def test_a_run_goes_on_without_a_runner_whose_node_is_lost_and_grows_again(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, second, cluster.room = Runner(ready=False), Runner(ready=False, node="a" * 56), False
    fleet = cluster.fleet([first, second], 1, 2)
    fleet.submit(MANY, 2, 1.0)
    mine = [task.id for task in second.given]
    lose(cluster, second)
    first.ready = True
    found = cluster.poll(fleet, 20)
    assert sorted(found) == [task.id for task in MANY] and set(mine) < set(found), "others play what it owed, each once"
    assert (set(fleet.runners), cluster.ray.killed, cluster.forgotten) == ({1}, [second], [2])
    (said,) = caplog.messages
    assert re.fullmatch(r"rollout-2 has left, its node 10\.0\.0\.7 \(worker-3, a{12}\) is gone: 1 engine", said)
    cluster.room, first.ready = True, False
    fleet.submit(TASKS, 2, 1.0)
    cluster.poll(fleet, 3)
    assert set(fleet.runners) == {1, 3}


def test_one_that_was_to_leave_stays_where_another_is_lost(cluster: Cluster) -> None:
    first, second, cluster.room = Runner(ready=False, node="a" * 56), Runner(ready=False), False
    fleet = cluster.fleet([first, second], 1, 2)
    fleet.submit(MANY, 2, 1.0)
    fleet.scale(1)
    lose(cluster, first)
    first.ping = SimpleNamespace(remote=lambda: Call(ActorUnavailableError("restarting", None)))  # type: ignore[attr-defined]
    cluster.poll(fleet, 2)
    second.ready = True
    assert sorted(cluster.poll(fleet, 20)) == [task.id for task in MANY]
    assert set(fleet.runners) == {2} and cluster.ray.killed == [first]


def test_of_too_many_those_whose_node_is_about_to_go_leave_first(cluster: Cluster) -> None:
    first, second, cluster.room = Runner(ready=False, node="a" * 56), Runner(), False
    fleet = cluster.fleet([first, second], 2, 2)
    fleet.submit(MANY, 2, 1.0)
    cluster.draining = {"a" * 56: 0}
    cluster.now += LOOK_S
    fleet.scale(1)
    assert sorted(cluster.poll(fleet, 20)) == [task.id for task in MANY]
    assert set(fleet.runners) == {2} and (first.told, second.told) == (("stop",), ())


def test_who_is_too_many_leaves_at_once_where_nothing_is_played(cluster: Cluster) -> None:
    first, second = Runner(), Runner()
    fleet = cluster.fleet([first, second], 2, 2)
    fleet.scale(1)
    assert set(fleet.runners) == {1} and (first.told, second.told) == ((), ("stop",))


@pytest.mark.parametrize("when", ["sync", "score", "stop"])
def test_a_runner_may_be_lost_in_whatever_is_asked_of_it(cluster: Cluster, when: str) -> None:
    first, second, cluster.room = Runner(ready=False), Runner(ready=False, node="a" * 56), False
    fleet = cluster.fleet([first, second], 1, 2)
    fleet.submit(MANY, 2, 1.0)
    mine = [task.id for task in second.given]
    lose(cluster, second)
    if when == "sync":
        assert [receipt.version for receipt in fleet.sync(4)] == [4]
    elif when == "score":
        assert fleet.score([]) == {"rollout-1": []}
    else:
        fleet.stop()
        assert not fleet.busy
        return
    assert [work.task.id for work in fleet._waiting][: len(mine)] == mine, "what it owed comes first"
    assert set(fleet.runners) == {1}


def test_the_fewest_that_there_may_be_are_waited_for(cluster: Cluster) -> None:
    first, second, cluster.room = Runner(ready=False), Runner(ready=False, node="a" * 56), False
    fleet = cluster.fleet([first, second], 2, 3)
    fleet.submit(MANY, 2, 1.0)
    lose(cluster, second)
    second.ping = SimpleNamespace(remote=lambda: Call(ActorUnavailableError("restarting", None)))  # type: ignore[attr-defined]
    with pytest.raises(FleetError, match=r"rollout-2 died and did not come back within 30 s \(its node 10\.0\.0\.7"):
        cluster.poll(fleet, 20)


def test_a_runner_leaves_a_node_that_is_about_to_go(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Runner(ready=False), Runner(ready=False, node="a" * 56)
    cluster.room = False
    fleet = cluster.fleet([first, second], 1, 2)
    fleet.submit(MANY, 2, 1.0)
    mine = [task.id for task in second.given]
    cluster.draining = {"a" * 56: 0}
    cluster.poll(fleet, 2)
    assert set(fleet.runners) == {1} and second.told == ("stop",) and mine
    assert re.fullmatch(r"rollout-2 has left, its node 10\.0\.0\.7 \(worker-3, a{12}\) is about to go: 1 engine", caplog.messages[0])
    first.ready = True
    assert sorted(cluster.poll(fleet, 20)) == [task.id for task in MANY]


def test_room_is_on_nodes_that_are_there_and_stay(cluster: Cluster) -> None:
    assert nodes.has_room({"CPU": 1.0}) and not nodes.has_room({"CPU": 1.5}) and not nodes.has_room({"CPU": 1.0, "GPU": 1.0})
    cluster.draining = {"a" * 56: 0}
    assert not nodes.has_room({"CPU": 1.0})
    cluster.draining, cluster.nodes[0]["Alive"] = {}, False
    assert not nodes.has_room({"CPU": 1.0})


def test_at_the_end_nobody_comes_any_more_and_who_goes_is_waited_for(cluster: Cluster) -> None:
    first, second, coming = Runner(ready=False), Runner(), Runner()
    cluster.next, coming.up, second.stopped = coming, False, False
    fleet = cluster.fleet([first, second], 1, 2)
    fleet.submit(TASKS, 2, 1.0)
    fleet.scale(1)
    cluster.poll(fleet, 3, lambda: set(fleet.runners) == {1})
    fleet.scale(2)
    cluster.poll(fleet, 2)
    assert cluster.started == [3] and not cluster.ray.killed
    fleet.close()
    assert cluster.ray.killed == [coming, second] and sorted(cluster.forgotten) == [2, 3]


def test_a_fixed_number_of_runners_stays_so(cluster: Cluster) -> None:
    fleet = RayFleet({1: Runner()}, FleetLimits())
    with pytest.raises(ValueError, match="the number of these runners is fixed"):
        fleet.scale(2)
    with pytest.raises(ValueError, match="min_runners and max_runners have no effect: the number of these runners is fixed"):
        RayFleet({1: Runner()}, FleetLimits(max_runners=2))
    assert len(list(run_tasks(fleet, TASKS, 2, 1.0))) == 4


class Player(Runner):
    """Plays what it is given, all at once, each group for as many seconds as `heavy` says of its number. Whoever asks it takes a second."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        super().__init__(node=f"node-{index}")
        self.cluster, self.name = cluster, f"rollout-{index}"
        self.playing: dict[str, tuple[Task, float, int]] = {}
        self.cancel = SimpleNamespace(remote=lambda: Call(self.playing.clear()))  # type: ignore[func-returns-value]
        self.score = SimpleNamespace(options=lambda name: SimpleNamespace(remote=self._score))

    def _score(self, rows: Sequence[Sequence[int]], version: int, life: str) -> Call:
        return Call(self._meant(life, version) or [np.full(len(ids) - 1, -0.5, np.float32) for ids in rows])

    def _submit(self, tasks: Sequence[Task]) -> list[Task]:
        for task in tasks:
            self.playing[task.id] = task, self.cluster.now + heavy(number(task)), self.holds
        return []

    def _sample(self, wait_s: float) -> list[EpisodeGroup]:
        self.cluster.now += 1.0
        ended = [one for one, (_, until, _) in self.playing.items() if until <= self.cluster.now]
        return [self._group(*self.playing.pop(one)) for one in ended]

    def _group(self, task: Task, until: float, began: int) -> EpisodeGroup:
        versions = np.array([-1, began, self.holds], np.int32)
        logprobs = np.array([0, -0.5, -0.5], np.float32)
        said = Trajectory(np.array([5, 6, 7], np.int32), np.array([False, True, True]), logprobs, versions)
        return EpisodeGroup(
            task, tuple(Episode(task, i, (said,), (), Reward(total), engine=self.name) for i, total in enumerate((1.0, 0.0)))
        )


@pytest.mark.parametrize("rollouts", ["sync", "one_step_off", "async"])
@pytest.mark.parametrize("happens_at", range(3))
def test_whatever_engines_come_and_go_each_task_is_trained_once_and_in_time(
    cluster: Cluster, rollouts: Rollouts, happens_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Long groups among them, which another engine plays again: they would be missing, were they left out for it."""
    steps, per_step = 20, 4
    phase = RFTPhaseConfig(
        steps=steps, groups_per_step=per_step, group_size=2, rollouts=rollouts, max_staleness=2 if rollouts == "async" else None,
        checkpoint_every=100,
    )  # fmt: skip
    made = {index: Player(cluster, index) for index in (1, 2)}
    cluster.make = lambda index: made.setdefault(index, Player(cluster, index))
    fleet = cluster.fleet([made[1], made[2]], 1, 3)
    loop = PolicyLoop(fleet, ScriptedLearner(), LoopSettings(phase, RolloutConfig(error_budget=1.0), "verdict"), STREAM)

    def beside(work: Callable[[], Any], meanwhile: Callable[[], bool]) -> Any:
        for _ in range(5):
            if not meanwhile():
                break
        return work()

    def last() -> Player:
        return made[max(fleet.runners)]

    def lose_one() -> None:
        if len(fleet.runners) > 1:
            cluster.nodes.append({**NODE, "NodeID": last().node})
            lose(cluster, last(), cluster.nodes[-1])

    def drain_one() -> None:
        if len(fleet.runners) > 1:
            cluster.nodes.append({**NODE, "NodeID": last().node})
            cluster.draining[last().node] = 0

    events = [lambda: fleet.scale(1), lambda: fleet.scale(3), lose_one, drain_one, lambda: fleet.scale(2), lose_one]
    groups, engines = 0, set[str]()

    def on_group(group: EpisodeGroup) -> None:
        nonlocal groups
        engines.update(episode.engine for episode in group.episodes)
        groups += 1
        if groups % 7 == happens_at:
            events[groups // 7 % len(events)]()

    loop.beside, loop.on_group = beside, on_group
    loop.sync()
    trained = list[int]()
    while loop.progress.step < steps:
        step = loop.step()  # which checks its books
        trained += [number(group.task) for group in step.collected.groups]
        assert step.batch is not None and step.metrics["learner/staleness_max"] <= phase.staleness
        assert 1 <= step.metrics.get("engines", 1) <= 4
    books = loop.progress.ledger
    assert sorted(trained) == list(range(steps * per_step)) and books.trained_count == books.issued == 2 * steps * per_step
    said = "\n".join(caplog.messages)
    assert len(engines) > 3 and "is gone" in said and "is about to go" in said and "since fewer are asked for" in said
