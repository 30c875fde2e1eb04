"""What measurements on held-out tasks in the course of a phase come to, and where they are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Reward, Task
from burnish.inspector.effort import effort_of
from burnish.inspector.held_out import held_out_rows
from burnish.inspector.report import render_report, success_curve
from burnish.inspector.runs import MetricRow, RecordedRun
from burnish.inspector.text import percent
from burnish.inspector.unmeasured import unmeasured
from burnish.inspector.watching import Watched, held_out_line, lines
from burnish.rollout.store.held_out import reward_of, success_of
from burnish.rollout.store.json_lines import JsonLines
from burnish.trainer.evaluation.between import held_out_metrics
from burnish.trainer.evaluation.statistics import summarize

pytestmark = pytest.mark.unit

PARTS = ({"env": 1.0, "brief": 0.5}, {"env": 0.0, "brief": 0.0}, {"env": 1.0, "brief": 0.0})
LINE = f"▁█ {percent(0.6)} ({percent(0.462)} to {percent(0.724)}), n = 50, after step 4"


def played() -> list[Episode]:
    """Three that were rewarded, with totals 1.5, 0 and 1, and one that failed."""
    rewarded = [Episode(Task(f"heldout-{i}", i), 0, (), (), Reward(sum(parts.values()), parts)) for i, parts in enumerate(PARTS)]
    return [*rewarded, Episode(Task("heldout-3", 3), 0, (), (), Failure(FailureKind.ENV_ERROR, "env", "broken"))]


def test_the_metrics_of_a_measurement_by_hand() -> None:
    row = held_out_metrics(summarize(played(), "env"), played(), 2.5)
    deviation = ((1.5 - 2.5 / 3) ** 2 + (2.5 / 3) ** 2 + (1 - 2.5 / 3) ** 2) ** 0.5 / 3**0.5
    assert row == {
        "held_out/success": pytest.approx(2 / 3), "held_out/reward_mean": pytest.approx(2.5 / 3),
        "held_out/reward_std": pytest.approx(deviation), "held_out/reward/brief": pytest.approx(0.5 / 3),
        "held_out/reward/env": pytest.approx(2 / 3), "held_out/turns": 0.0, "held_out/tokens": 0.0, "held_out/truncated": 0.0,
        "held_out/tasks": 3.0, "held_out/episodes": 4.0, "held_out/failed": 1.0, "held_out/seconds": 2.5,
    }  # fmt: skip
    mean, low, high = reward_of(row) or (0, 0, 0)
    half = 4.3027 * deviation * 1.5**0.5 / 3**0.5  # Student's quantile of two degrees of freedom, and the deviation of a sample
    assert (mean, low, high) == pytest.approx((2.5 / 3, 2.5 / 3 - half, 2.5 / 3 + half), abs=1e-3)
    assert success_of(row) == pytest.approx((2 / 3, 0.2077, 0.9385), abs=1e-3)  # Wilson's, of 2 in 3


@pytest.mark.parametrize(
    "change", [{"held_out/tasks": 1e300}, {"held_out/tasks": 0.0}, {"held_out/success": 7.0}, {"held_out/success": -1e300}]
)
def test_a_row_that_anybody_may_have_written_is_left_out(change: dict[str, float]) -> None:
    row = held_out_metrics(summarize(played(), "env"), played(), 2.5) | change
    assert success_of(row) is None


def run_of(path: Path) -> RecordedRun:
    """Four steps, of which the second and the fourth were measured."""
    rows = []
    for step, success in enumerate((0.2, 0.4, 0.5, 0.7), 1):
        values = {"reward_mean": success, "success": success, "rewarded": 64.0, "episodes": 64.0, "episode/tokens": 2.0}
        if step % 2 == 0:
            more = {"success": success - 0.1, "reward_mean": 0.3, "reward_std": 0.4, "tasks": 50.0, "episodes": 50.0, "tokens": 3.0}
            values |= {f"held_out/{name}": value for name, value in more.items()}
        rows.append(MetricRow("rft", step, 1e9 + step, values))
    return RecordedRun(path, {"rft": {"steps": 4}}, {}, {}, tuple(rows), (), ())


def test_the_curve_is_drawn_with_that_of_training_and_said_on_the_terminal(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (curve,) = success_curve(run, "rft")
    assert (curve.first, curve.last) == (pytest.approx(0.3), pytest.approx(0.6))
    assert 'class="line s0"' in curve.svg and 'class="line dashed s1"' in curve.svg and 'class="band s1"' in curve.svg
    assert f"<b>{curve.name}</b>" in render_report(run, ())
    assert held_out_line(run, "rft") == LINE and not held_out_line(run, "sft")
    assert f"held out   {LINE}" in lines(Watched(run, (), False, 1e9))
    first, last = held_out_rows(run)
    assert (first["step"], last["step"], last["success"], last["reward"], last["tasks"]) == (2, 4, pytest.approx(0.6), 0.3, 50)
    assert effort_of(run).evaluated == 2 * 50 * 3


def test_show_and_tail_have_it(tmp_path: Path) -> None:
    run = tmp_path / "one"
    run.mkdir()
    for name, text in {"config.json": '{"name": "one", "rft": {"steps": 4}}', "seeds.json": "{}"}.items():
        (run / name).write_text(text)
    with JsonLines(run / "metrics.jsonl") as rows:
        for row in run_of(run).metrics:
            rows.append({"phase": row.phase, "step": row.step, "time": row.time, **row.values})
    shown = CliRunner().invoke(app, ["runs", "show", str(run)]).output
    assert f"held out in the course of rft: {LINE}" in shown
    last = CliRunner().invoke(app, ["runs", "tail", str(run), "-n", "1"]).output
    assert "success 0.7 (n = 64)  held_out/success 0.6 (n = 50)" in last


def test_what_was_measured_between_steps_is_not_said_to_be_unmeasured(tmp_path: Path) -> None:
    first, *_ = unmeasured(run_of(tmp_path))
    assert first == (
        "Held-out tasks: every figure here is of tasks that were trained on, but for held-out tasks that were played between steps."
    )
