"""The drawings and the account of a report: what was kept, gain against that, idle roles, how long episodes took, and what it cost."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_inspector import EVIL, Page, evaluation
from tests.unit.test_rollout_episodes import episode, stored

from burnish.envs.types import Reward
from burnish.inspector.charts import WIDTH, bar_chart
from burnish.inspector.effort import effort_of
from burnish.inspector.plots import frontier_drawing, idle_curves, latencies_of, retention_curves
from burnish.inspector.report import write_report
from burnish.inspector.runs import MetricRow, RecordedRun
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import Comparison, RetentionRow

pytestmark = pytest.mark.unit

TRAIN, HELD_OUT = Moment("rft", 1, "train", "sampled"), Moment("rft", 1, "heldout", "sampled")
LIMIT = {"retention": {"min_retention": 0.9}}


def kept(phase: str, retention: float | None, suite: str = "sums", step: int = 1) -> RetentionRow:
    around: dict[str, Any] = {} if retention is None else {"retention": retention, "low": retention - 0.1, "high": retention + 0.1}
    return RetentionRow(phase=phase, step=step, suite=suite, kind="answers", items=50, before=0.9, after=0.9, **around)


def after(phase: str, gain: float) -> Any:
    return evaluation(phase, 0.4 + gain, against={"base": Comparison(gain, gain - 0.1, gain + 0.1, 0.01, 2)})


def run_of(path: Path = Path("runs/none-such"), **parts: Any) -> RecordedRun:
    return replace(RecordedRun(path, {}, {}, {}, (), (), ()), **parts)


def stepped(phase: str, step: int, **values: float) -> MetricRow:
    return MetricRow(phase, step, 10.0, {name.replace("__", "/"): value for name, value in values.items()})


def took(number: int, seconds: float, **scorers: float) -> Any:
    """An episode whose turn took so long, and whose scorers did."""
    one = episode(number, 0, Reward(1.0, {"env": 1.0}))
    metrics = {f"{name}/judge_seconds": judged for name, judged in scorers.items()}
    return replace(one, turns=(replace(one.turns[0], generate_s=seconds, env_s=0.0),), metrics=metrics)


def test_what_was_left_of_each_skill_is_drawn_from_the_whole_of_it_with_the_limit() -> None:
    rows = (kept("sft", 0.97), kept("rft", 0.8), kept("sft", None, "stories"), kept("sft", 1.0, EVIL))
    curves = retention_curves(run_of(config=LIMIT, retention=rows))
    assert [(one.first, one.last) for one in curves] == [(1.0, 0.8), (1.0, 1.0)], "a suite without a skill is in the table alone"
    root = ET.fromstring(curves[0].svg)
    (limit,) = [node for node in root.iter("line") if node.get("class") == "constant"]
    dots = list(root.iter("circle"))
    assert [node.findtext("title") for node in dots] == ["sums, base: 1", "sums, sft: 0.97", "sums, rft: 0.8"]
    heights = [float(node.get("cy") or 0) for node in dots]
    assert heights[1] < float(limit.get("y1") or 0) < heights[2], "one is above the limit, one below"
    assert len(list(root.iter("polygon"))) == 1 and "<script" not in curves[1].svg
    assert 'class="constant"' not in retention_curves(run_of(config={"retention": {"min_retention": "x"}}, retention=rows))[0].svg


def test_gain_is_drawn_against_retention_where_a_phase_measured_both() -> None:
    both = run_of(config=LIMIT, evaluations=(evaluation("base", 0.4), after("sft", 0.2), after("rft", 0.3)), retention=(kept("sft", 0.95),))
    root = ET.fromstring(frontier_drawing(both))
    assert [node.findtext("title") for node in root.iter("circle")] == ["base: retention 1, 0", "sft: retention 0.95, 20"]
    three = replace(both, retention=(*both.retention, kept("rft", 0.8), kept("rft", 0.7, "spelling"), kept("rft", 0.1, step=9)))
    assert "rft: retention 0.7, 30" in frontier_drawing(three), "the skill that fell most, at the step of the evaluation"
    worse = replace(both, evaluations=(evaluation("base", 0.4), after("sft", -0.2)))
    assert 'class="point hollow"' in frontier_drawing(worse), "whom the base beats in both"
    for without in (replace(both, retention=()), replace(both, evaluations=both.evaluations[1:])):
        assert frontier_drawing(without) == ""


def test_who_was_idle_is_drawn_step_by_step() -> None:
    first = {f"{state}__{part}_seconds": 1.0 for state in ("busy", "idle") for part in ("environment", "rewards", "learner")}
    rows = (
        stepped("rft", 1, busy__engine_seconds=1.0, idle__engine_seconds=3.0, **first),
        stepped("rft", 2, busy__engine_seconds=3.0, idle__engine_seconds=1.0, **{**first, "busy__learner_seconds": -0.5}),
        stepped("rft", 3, busy__engine_seconds=3.0, idle__engine_seconds=1.0),
        stepped("sft", 1, loss=1.0),
    )
    drawn = [(one.name, one.first, one.last) for one in idle_curves(run_of(metrics=rows), "rft")]
    assert drawn == [
        ("Engines: idle share", 0.75, 0.25),
        ("Environments and tools: idle share", 0.5, 0.5),
        ("Rewards and verifiers: idle share", 0.5, 0.5),
        ("Learner: idle share", 0.5, 0.5),
    ], "what says that it was busy for less than no time is left out"
    assert idle_curves(run_of(metrics=rows), "sft") == []


def test_how_long_stored_episodes_and_their_verdicts_took(tmp_path: Path) -> None:
    many = [took(i, float(i), gauge=i / 1000) for i in range(1, 101)]
    stored(tmp_path / "episodes", *many, took(101, 1e300), moment=TRAIN)
    stored(tmp_path / "episodes", took(1, 7.0, **{EVIL: 0.5}), moment=HELD_OUT)
    run = run_of(tmp_path, metrics=(stepped("rft", 1, loss=1.0),), evaluations=(evaluation("rft", 0.5),))
    (trained,) = latencies_of(run)
    assert (trained.phase, trained.split) == ("rft", "train")
    assert [(what, n) for what, n, _ in trained.drawn] == [("episode: engine and environment", 100), ("gauge", 100)]
    assert "p50 50.5 s, p95 95.05 s, max 100 s" in trained.drawn[0][2] and "p50 0.0505 s" in trained.drawn[1][2]
    (held_out,) = latencies_of(replace(run, metrics=()))
    assert held_out.split == "heldout" and "<script" not in held_out.drawn[1][2]
    assert latencies_of(run_of()) == []


def test_bars_end_within_their_drawing() -> None:
    root = ET.fromstring(bar_chart("a", [("p50", 1.0), ("max", 12345.678), ("gone", float("nan")), ("less", -1.0)], "s"))
    bars = [(float(node.get("x") or 0), float(node.get("width") or 0)) for node in root.iter("rect")]
    assert len(bars) == 2 and bars[0][1] == 1.0, "the shortest is still seen"
    ends = [(float(node.get("x") or 0), node.text or "") for node in root.iter("text") if node.get("class") == "tick"]
    assert all(x + 6 * len(said) <= WIDTH for x, said in ends) and ends[1][1] == "12,346 s"
    assert bar_chart("a", [("p50", 0.0)], "s") == ""


def test_the_cost_is_wall_clock_times_what_the_run_was_given_and_tokens() -> None:
    rows = (
        stepped("sft", 1, seconds=1800.0, tokens=100.0),
        stepped("rft", 1, step_seconds=9.0, episodes=1.0),
        stepped("rft", 1, step_seconds=5400.0, episodes=10.0, episode__tokens=25.0, learner__tokens=200.0, learner__replay_tokens=50.0),
        stepped("rft", 2, step_seconds=1e300),
    )
    run = run_of(versions={"given": {"cpus": 8, "gpus": 1.5}}, metrics=rows, evaluations=(evaluation("rft", 0.5),))
    effort = effort_of(run)
    assert [(one.phase, one.steps, one.clock, one.sampled, one.trained, one.cpu_hours, one.gpu_hours) for one in effort.phases] == [
        ("sft", 1, "0:30:00", None, 100.0, 4.0, 0.75),
        ("rft", 1, "1:30:00", 250.0, 250.0, 12.0, 2.25),
        ("", 2, "2:00:00", 250.0, 350.0, 16.0, 3.0),
    ]
    assert effort.evaluated == 160.0
    assert effort.reckoning == "Hours are that times all that the run was given, busy or not: 8 CPUs and 1.5 GPUs."
    joined = effort_of(replace(run, versions={"given": {"cpus": None, "gpus": 1}}))
    assert joined.phases[0].cpu_hours is None and "1 GPU. The CPUs of a cluster that a run joins" in joined.reckoning
    odds: list[dict[str, Any]] = [{}, {"given": 7}, {"given": {"cpus": "8", "gpus": -1}}]
    for odd in odds:
        assert "not recorded" in effort_of(replace(run, versions=odd)).reckoning
    assert effort_of(run_of()).phases == ()


def test_the_report_has_all_of_it_in_one_inert_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"name": EVIL, **LIMIT}))
    (tmp_path / "versions.json").write_text(json.dumps({"given": {"cpus": 2, "gpus": 0.0}}))
    (tmp_path / "seeds.json").write_text("{}")
    busy = {f"{state}/{part}_seconds": 1.0 for state in ("busy", "idle") for part in ("engine", "environment", "rewards", "learner")}
    step: dict[str, Any] = {"phase": "rft", "step": 1, "time": 1.0, "step_seconds": 3600.0, **busy}
    files: dict[str, list[dict[str, Any]]] = {
        "metrics": [step],
        "evaluations": [evaluation("base", 0.4).to_row(), after("rft", 0.3).to_row()],
        "retention": [kept("rft", 0.8, EVIL).to_row()],
    }
    for name, rows in files.items():
        with JsonLines(tmp_path / f"{name}.jsonl") as lines:
            for row in rows:
                lines.append(row)
    stored(tmp_path / "episodes", took(1, 2.0, **{EVIL: 0.5}), moment=TRAIN)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for expected in (
        "Dashed: 0.9, the least that the recipe asks for", "points of success gained over the base", "Learner: idle share",
        "Reinforcement fine-tuning, training episodes", "episode: engine and environmentn = 1", "1:00:00", "2 CPUs and 0 GPUs",
    ):  # fmt: skip
        assert expected in text, expected
    assert not {"script", "iframe", "link", "img", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
