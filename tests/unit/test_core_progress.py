"""What a run says while it works and when it ends: rates of late, whole lines in logs, outages, and where the results are."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Reward, Task
from burnish.rollout.store.records import BestConstant, EvaluationRecord, EvaluationResult
from burnish.run.display import StepBar, constant_line, failures_line, new_console, say
from burnish.run.folder import RunFolder
from burnish.run.launch import say_what_next

pytestmark = pytest.mark.unit

TASKS = {f"t{i}": 0.5 for i in range(8)}
BEST = BestConstant("pass", 0.625, 0.5)
RESULT = EvaluationResult("sampled", "verdict", 8, 8, 0.5, 0.2, 0.8, 0.5, 3.0, 40.0, TASKS, best_constant=BEST)


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log() -> tuple[Console, io.StringIO]:
    """A console that writes to a file, as wide as rich assumes when it is told nothing."""
    file = io.StringIO()
    return Console(file=file, width=80), file


def test_the_rate_is_that_of_late_and_not_of_a_slow_start() -> None:
    console, file = log()
    clock = Clock()
    with StepBar(console, "SFT", 200, clock=clock) as bar:
        for seconds in (90.0, *[0.5] * 199):
            clock.now += seconds
            bar.advance("")
    said = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert said[0] == "SFT 1/200 90 s 90.0 s/step 4:58:30 left"
    assert "SFT 61/200 120 s 2.0/s 1:10 left" in said  # 30 s later, the first step has left the window
    assert said[-1] == "SFT 200/200 190 s 2.0/s"


def test_the_rate_of_steps_longer_than_its_window_is_that_of_the_last_step() -> None:
    console, file = log()
    clock = Clock()
    with StepBar(console, "RFT", 10, done=4, clock=clock) as bar:
        for seconds in (200.0, 60.0):
            clock.now += seconds
            bar.advance("")
    assert file.getvalue().splitlines()[-1].split("  ")[2:4] == ["60.0 s/step", "4:00 left"]


def test_a_line_is_never_broken() -> None:
    console, file = log()
    say(console, "x" * 300)
    assert file.getvalue() == "x" * 300 + "\n"


def test_tables_in_logs_are_wider_than_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert new_console().width == 160
    monkeypatch.setenv("COLUMNS", "100")
    assert new_console().width == 100


def test_an_outage_is_a_line_in_its_step() -> None:
    good = Episode(Task("t", 1), 0, (), (Message("user", "?"),), Reward(1.0, {"env": 1.0}))
    down = Failure(FailureKind.VERIFIER_UNAVAILABLE, "v@h:1", "connection refused\nmore")
    late = Failure(FailureKind.VERIFIER_TIMEOUT, "v@h:1", "no answer within 5.0 s")
    assert failures_line(3, [good, good]) is None
    assert failures_line(3, [good, replace(good, outcome=late), replace(good, outcome=down), replace(good, outcome=down)]) == (
        "step 3: 3 of 4 episodes failed and teach nothing: 2 verifier_unavailable, 1 verifier_timeout; "
        "the last one: verifier_unavailable in v@h:1: connection refused"
    )


def test_a_success_that_a_constant_policy_has_too_is_doubted() -> None:
    assert constant_line(replace(RESULT, success=0.7)) is None
    assert constant_line(replace(RESULT, best_constant=None)) is None
    assert "success 50.0% is not above the 62.5% of a policy that always says 'pass'" in (constant_line(RESULT) or "")


def test_a_run_that_has_ended_says_what_it_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log_evaluation(EvaluationRecord(phase="rft", step=3, result=RESULT))
    console, file = log()
    say_what_next(folder, console)
    doubt, *rest = file.getvalue().splitlines()
    assert doubt.startswith("careful: success 50.0% is not above")
    assert rest == [
        f"report:       {tmp_path}/report.html",
        f"transcripts:  burnish rollouts {tmp_path} --order worst",
        f"serve it:     burnish serve {tmp_path}",
    ]
