"""What a run says while it works and when it ends: rates of late, whole lines in logs, outages, and where the results are."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Reward, Task
from burnish.rollout.config import RolloutConfig
from burnish.rollout.store.records import BestConstant, EvaluationRecord, EvaluationResult
from burnish.run import pipeline
from burnish.run.display import StepBar, constant_line, failures_line, new_console, say
from burnish.run.folder import RunFolder
from burnish.run.launch import say_what_next
from burnish.session import Session
from burnish.trainer.learner.probe import probe_loss
from burnish.trainer.phases.common import PhaseStep

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


def test_every_checkpoint_scores_the_probe_that_the_learner_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is loaded again and scored: a model that scores otherwise ends the run."""
    done: list[Any] = []
    learner = SimpleNamespace(weights=lambda: "weights", foreach_learner=lambda probe: [("probed by", probe)])
    one = SimpleNamespace(learner=learner, base=tmp_path, recipe=SimpleNamespace(rollout=RolloutConfig()))
    monkeypatch.setattr("burnish.session.write_model_folder", lambda *what: done.append(("written", what[:3])))
    monkeypatch.setattr("burnish.session.check_saved", lambda *what: done.append(("scored", what)))
    Session.save_model(cast(Session, one), tmp_path / "model", "mine")
    assert done == [
        ("written", ("weights", tmp_path, tmp_path / "model")),
        ("scored", (tmp_path / "model", ("probed by", probe_loss))),
    ]


def test_a_step_says_what_failed_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two steps the second has an outage: one line, in the step in which it happens. What each measured is told to Ray."""
    good = Episode(Task("t", 1), 0, (), (), Reward(1.0))
    down = replace(good, outcome=Failure(FailureKind.VERIFIER_UNAVAILABLE, "v@h:1", "connection refused"))
    steps = [PhaseStep(n, {"loss": 0.0}, "line", episodes=[good, one]) for n, one in ((1, good), (2, down))]
    console, file = log()
    table = SimpleNamespace(steps=2, checkpoint_every=9, best_by=None)
    phase = SimpleNamespace(name="rft", table=table, kind=SimpleNamespace(steps=lambda *_: iter(steps)))
    shown: list[Any] = []
    session = SimpleNamespace(loop=SimpleNamespace(on_group=None), algo=SimpleNamespace(show=shown.append))
    folder = RunFolder(tmp_path)
    run = SimpleNamespace(session=session, results={}, folder=folder, console=console, data={})
    for name in ("_begin", "_keep", "_checkpoint", "_end"):
        monkeypatch.setattr(f"burnish.run.pipeline.{name}", lambda *what, **more: None)
    monkeypatch.setattr("burnish.run.pipeline._parts", lambda *what: SimpleNamespace(done=[]))
    monkeypatch.setattr("burnish.run.pipeline.Spent.reached", lambda *what: "")
    assert pipeline._train(cast(Any, run), cast(Any, phase), 0) == 2
    assert shown == [{"loss": 0.0}] * 2
    said = [line for line in file.getvalue().splitlines() if "teach nothing" in line]
    assert said == [
        "step 2: 1 of 2 episodes failed and teach nothing: 1 verifier_unavailable; "
        "the last one: verifier_unavailable in v@h:1: connection refused"
    ]
