"""An account of time: who was busy, who was idle, and what a run waits for. Clocks are the tests' own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from burnish.rollout.busy import Busy, Meter, shares, what_to_scale
from burnish.rollout.weights import SyncReceipt
from burnish.trainer.schedule.account import Account

pytestmark = pytest.mark.unit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def receipt(engine: str, busy: Busy, life: str = "first") -> SyncReceipt:
    return SyncReceipt(engine, 1, 1, 1, 0.0, 0.0, busy, life=life)


def test_calls_that_overlap_count_once_and_one_that_is_under_way_counts_until_now() -> None:
    clock = Clock()
    meter = Meter(clock)
    clock.now = 1.0
    with meter.running("engine"):
        clock.now = 3.0
        with meter.running("engine"), meter.running("environment"):
            clock.now = 4.0
        clock.now = 6.0
        assert meter.read() == Busy(engine=5.0, environment=1.0, rewards=0.0, elapsed=6.0)
    clock.now = 10.0
    with pytest.raises(RuntimeError), meter.running("rewards"):
        clock.now = 12.0
        raise RuntimeError("it was down")
    assert meter.read() == Busy(engine=5.0, environment=1.0, rewards=2.0, elapsed=12.0)


@pytest.mark.parametrize("after", range(6))
def test_a_call_that_ends_while_another_thread_reads_counts_once(after: int) -> None:
    clock = Clock()
    meter = Meter(clock)
    call, events = meter.running("engine"), iter(range(1000))
    call.__enter__()
    clock.now = 10.0

    def ends(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != Meter.read.__code__.co_filename:
            return None
        if next(events) == after:
            sys.settrace(None)
            call.__exit__(None, None, None)
        return ends

    others = sys.gettrace()
    sys.settrace(ends)
    try:
        read = meter.read()
    finally:
        sys.settrace(others)
    assert (read.engine, read.elapsed) == (10.0, 10.0)


def test_busy_and_idle_seconds_of_a_step_are_what_came_since_the_last_hand_out() -> None:
    clock = Clock()
    account = Account(clock)
    assert account.handed_out([receipt("a", Busy(9, 9, 9, 90)), receipt("b", Busy(0, 0, 0, 90))], step=0) == {}
    with account.learning():
        clock.now = 4.0
    clock.now = 10.0
    found = account.handed_out([receipt("a", Busy(16, 11, 9, 100)), receipt("b", Busy(2, 1, 0, 100))], step=1)
    assert found == {
        "busy/engine_seconds": 9.0, "idle/engine_seconds": 11.0, "busy/environment_seconds": 3.0, "idle/environment_seconds": 17.0,
        "busy/rewards_seconds": 0.0, "idle/rewards_seconds": 20.0, "busy/learner_seconds": 4.0, "idle/learner_seconds": 6.0,
    }  # fmt: skip
    assert shares(found) == {"engine": 0.45, "environment": 0.15, "rewards": 0.0, "learner": 0.4}
    clock.now = 12.0
    found = account.handed_out([receipt("a", Busy(17, 11, 9, 102)), receipt("b", Busy(4, 1, 0, 102))], step=2)
    assert (found["busy/engine_seconds"], account.total["busy/engine_seconds"]) == (3.0, 12.0)
    assert account.handed_out([receipt("a", Busy(18, 0, 0, 900)), receipt("b", Busy(4, 1, 0, 999))], step=9) == {}, (
        "what lay between is none"
    )


def test_a_step_before_which_something_else_was_played_is_not_accounted_for() -> None:
    account = Account(Clock())
    account.handed_out([receipt("a", Busy(9, 9, 9, 90))], step=0)
    account.pause()
    assert account.handed_out([receipt("a", Busy(16, 11, 9, 100))], step=1) == {} == account.total
    assert account.handed_out([receipt("a", Busy(17, 11, 9, 102))], step=2)["busy/engine_seconds"] == 1


@pytest.mark.parametrize("elapsed", [20, 125])
def test_an_engine_that_was_started_anew_counts_from_its_beginning_however_old_it_is(elapsed: int) -> None:
    account = Account(Clock())
    account.handed_out([receipt("a", Busy(95, 3, 0, 100))], step=0)
    found = account.handed_out([receipt("a", Busy(15, 1, 0, elapsed), life="second")], step=1)
    assert (found["busy/engine_seconds"], found["idle/engine_seconds"]) == (15, elapsed - 15)
    found = account.handed_out([receipt("a", Busy(19, 1, 0, elapsed + 5), life="second")], step=2)
    assert (found["busy/engine_seconds"], found["idle/engine_seconds"]) == (4, 1)


@pytest.mark.parametrize(
    ("busy", "rollouts", "advice"),
    [
        ((0.95, 0.9, 0.1, 0.5), "async", "steps wait for the engines"),
        ((0.6, 0.2, 0.1, 0.97), "async", "steps wait for the learner"),
        ((0.6, 0.2, 0.1, 0.35), "sync", "engines and learner take turns"),
        ((0.3, 0.9, 0.1, 0.2), "sync", "engines wait for the environment"),
        ((0.3, 0.2, 0.7, 0.2), "async", "engines wait for the rewards"),
        ((0.1, 0.1, 0.0, 0.2), "sync", "what takes time lies between them"),
    ],
)
def test_one_line_says_what_to_scale(busy: tuple[float, ...], rollouts: str, advice: str) -> None:
    parts = zip(("engine", "environment", "rewards", "learner"), busy, strict=True)
    seconds = {key: value for part, share in parts for key, value in ((f"busy/{part}_seconds", share), (f"idle/{part}_seconds", 1 - share))}
    line = what_to_scale(seconds, rollouts)
    assert line is not None and line.startswith(f"busy: engine {busy[0]:.0%}, ") and advice in line
    assert what_to_scale({}, rollouts) is None
