"""A report says what its run did not measure, and draws the reward with its interval."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_inspector import evaluation

from burnish.envs.types import Episode, Reward, Task
from burnish.inspector.report import render_report
from burnish.inspector.runs import MetricRow, RecordedRun
from burnish.inspector.unmeasured import unmeasured
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import RetentionRow

pytestmark = pytest.mark.unit

SEED = "Another seed: this is one run, and the intervals say nothing of how others of the same recipe would end."
SURE: dict[str, Any] = {
    "task_success": {str(i): 1.0 for i in range(900)},
    "episodes": 900,
    "rewarded": 900,
    "success_low": 0.78,
    "success_high": 0.82,
}
KEPT = RetentionRow(phase="rft", step=2, suite="sums", kind="answers", items=50, before=0.9, after=0.9)


def run_of(*evaluations: Any, phases: tuple[str, ...] = ("rft",), **changes: Any) -> RecordedRun:
    metrics = tuple(MetricRow(phase, 1, 10.0, {"loss": 1.0}) for phase in phases)
    return replace(RecordedRun(Path("runs/none-such"), {}, {}, {}, metrics, tuple(evaluations), ()), **changes)


def test_a_run_without_held_out_tasks_measured_none_of_what_matters() -> None:
    said = unmeasured(run_of())
    assert said[0] == "Held-out tasks: every figure here is of tasks that were trained on."
    assert len(said) == 3 and "no skill beside the task was measured" in said[1] and said[2] == SEED


def test_what_a_run_without_held_out_tasks_measured_of_what_it_did_not_train_on_is_named() -> None:
    metrics = (MetricRow("sft", 1, 10.0, {"loss": 1.0, "held_out_loss": 1.5}),)
    said = "Held-out tasks: every figure here is of tasks that were trained on, but for the "
    assert unmeasured(run_of(metrics=metrics))[0] == f"{said}loss of rows that were held out."
    assert unmeasured(run_of(retention=(KEPT,)))[0] == f"{said}skills that were to be kept."
    both = unmeasured(run_of(metrics=metrics, retention=(KEPT,)))[0]
    assert both == f"{said}loss of rows that were held out and the skills that were to be kept."


def test_a_run_that_measured_everything_still_is_one_run() -> None:
    both = [evaluation(phase, 0.8, mode, **SURE) for phase in ("base", "rft") for mode in ("sampled", "greedy")]
    assert unmeasured(run_of(*both, retention=(KEPT,))) == [SEED]


def test_what_is_missing_is_named() -> None:
    """Of a run of three phases with two evaluations, both of the last: few tasks, and an episode that failed."""
    said = unmeasured(run_of(evaluation("rft", 0.5), evaluation("rft", 0.6, step=2), phases=("sft", "dpo", "rft")))
    assert said[:5] == [
        "The model before any training: what all phases changed together is not known.",
        "Held-out tasks after supervised fine-tuning and preference optimisation: what each changed is not known by itself.",
        "Answers at temperature 0 (greedy): success is of answers sampled as in training.",
        "Small changes: 2 held-out tasks (sampled) tell success to within 10 points either way.",
        "1 of 4 episodes of the last sampled evaluation, which failed and are in none of its means.",
    ]
    greedy = unmeasured(run_of(evaluation("base", 0.5, "greedy", task_success={"t": 1.0}), evaluation("rft", 0.5, "greedy")))
    assert greedy[0].startswith("Sampled answers: success is of the one answer at temperature 0")


class Page(HTMLParser):
    """What stands in the list of what was not measured, and how often each class is drawn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.classes, self.lines, self._inside = list[str](), list[str](), False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += (dict(attrs).get("class") or "").split()
        self._inside = tag == "li"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.lines.append(data)
            self._inside = False


def test_the_report_says_so_as_text() -> None:
    run = run_of(evaluation("rft", 0.5), phases=("rft", "<b>\x1b[31mx\u202e</b>"))
    html = render_report(run, [])
    page = Page(html)
    assert "Held-out tasks after <b>\\x1b[31mx\\u202e</b>: what it changed is not known by itself." in page.lines
    assert "<b>\x1b" not in html and "band" not in page.classes, "no episode is stored"


def test_the_reward_of_the_stored_episodes_has_its_interval(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        for step, better in ((1, 0.0), (2, 0.25)):
            tasks = [Task(f"train-{i}", i) for i in range(6)]
            attempts = [Episode(task, 0, (), (), Reward(better + task.seed / 10)) for task in tasks]
            store.put(Moment("rft", step, "train", "sampled"), attempts)
    html = render_report(run_of(path=tmp_path, phases=("sft", "rft")), [])
    assert Page(html).classes.count("band") == 1
    assert html.count("<b>reward, 95 % interval</b>") == 1
    assert "0.25 → 0.5" in html
