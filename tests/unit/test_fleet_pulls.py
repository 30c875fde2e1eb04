"""Work is pulled: of two runners, the one that is done sooner plays more. Ray is scripted, and nobody's clock but the test's moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import ray
from tests.unit.clocked import Clock

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task
from burnish.trainer.fleet import AHEAD, FleetLimits, RayFleet

pytestmark = pytest.mark.unit

GROUP = 4


class Call:
    """A call of an actor's: answered at a time, with what it then gives."""

    def __init__(self, at: Callable[[], float], gives: Callable[[], Any]) -> None:
        self.at, self.gives = at, gives


class Method:
    def __init__(self, call: Callable[..., Call]) -> None:
        self._call = call

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *arguments: Any) -> Call:
        return self._call(*arguments)


class Runner:
    """Plays as many groups at once as it has places, each for so many seconds, in the order they came. played: by task. most: that it held
    at once."""

    def __init__(self, clock: Clock, lasts: float, places: int) -> None:
        self.clock, self.lasts, self.places = clock, lasts, places
        self.free, self.ends, self.played, self.most = [0.0] * places, list[tuple[float, Task]](), list[str](), 0
        self.submit, self.sample = Method(self._submit), Method(self._sample)

    def _submit(self, tasks: Sequence[Task], size: int, *_: Any) -> Call:
        assert size == GROUP
        for task in tasks:
            place = min(range(self.places), key=lambda one: self.free[one])
            self.free[place] = max(self.free[place], self.clock.now) + self.lasts
            self.ends.append((self.free[place], task))
        self.most = max(self.most, len(self.ends))
        return Call(lambda: self.clock.now, lambda: None)

    def _sample(self, wait_s: float, _: Any) -> Call:
        asked = self.clock.now
        return Call(lambda: min([asked + wait_s, *(max(asked, end) for end, _ in self.ends)]), self._ended)

    def _ended(self) -> list[EpisodeGroup]:
        done = [task for end, task in self.ends if end <= self.clock.now]
        self.ends = [(end, task) for end, task in self.ends if end > self.clock.now]
        self.played += [task.id for task in done]
        return [EpisodeGroup(task, tuple(Episode(task, i, (), (), Reward(1.0)) for i in range(GROUP))) for task in done]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Moved by waiting alone: `ray.wait` goes to when the first call is answered, or to its own end."""
    clock = Clock()

    def wait(calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        clock.now = min([clock.now + timeout, *(max(clock.now, call.at()) for call in calls)])
        ready = [call for call in calls if call.at() <= clock.now]
        return ready, [call for call in calls if call not in ready]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda call, timeout: call.gives())
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


def play(clock: Clock, runners: dict[int, Runner], tasks: int) -> tuple[Counter[str], float]:
    """How many tasks each runner played, and the seconds of all."""
    fleet = RayFleet(runners, FleetLimits(concurrency=GROUP * 2))
    fleet.submit([Task(f"t{i}", i) for i in range(tasks)], GROUP, 1.0)
    done = list[str]()
    while fleet.busy:
        done += [group.task.id for group in fleet.poll()]
    assert sorted(done) == sorted(f"t{i}" for i in range(tasks)), "each task once"
    return Counter({name: len(runner.played) for name, runner in zip("ab", runners.values(), strict=True)}), clock.now


@pytest.mark.parametrize("slow_first", [True, False])
def test_a_runner_four_times_as_fast_plays_four_times_as_much(slow_first: bool, clock: Clock) -> None:
    slow, fast = Runner(clock, 4.0, 2), Runner(clock, 1.0, 2)
    played, seconds = play(clock, {1: slow, 2: fast} if slow_first else {1: fast, 2: slow}, 200)
    few, many = (played["a"], played["b"]) if slow_first else (played["b"], played["a"])
    assert few + many == 200 and 3.5 < many / few < 4.5, (few, many)
    # Two places of each play 2.5 tasks a second together: 80 s. Dealt half and half, the slow one's hundred take 200 s.
    assert 80.0 <= seconds < 95.0, seconds
    assert max(slow.most, fast.most) <= AHEAD * 2, "no runner is given more than it can begin soon"


def test_a_runner_that_stands_still_holds_up_no_more_than_it_was_given(clock: Clock) -> None:
    stuck, fast = Runner(clock, 50.0, 2), Runner(clock, 1.0, 2)
    played, seconds = play(clock, {1: stuck, 2: fast}, 60)
    assert played == {"a": AHEAD * 2, "b": 60 - AHEAD * 2} and seconds == pytest.approx(100.0, abs=0.2)
