"""What runs gained against what they kept: who is on the frontier, who is picked, and what cannot be set side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.inspector.charts import Dot, scatter_chart
from burnish.inspector.frontier import find_frontier, frontier_page
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult, RetentionRow

pytestmark = pytest.mark.unit

TASKS = 100


def evaluated(phase: str, right: int, mode: Any = "sampled", step: int = 1) -> dict[str, Any]:
    """So many of a hundred tasks are right, always the first ones."""
    success = {f"heldout-{i:03}": float(i < right) for i in range(TASKS)}
    share = right / TASKS
    result = EvaluationResult(mode, "env", TASKS, TASKS, share, share, share, share, 1.0, 3.0, success)
    return EvaluationRecord(phase=phase, step=step, result=result).to_row()


def kept(suite: str, retention: float | None, phase: str = "sft", step: int = 1) -> dict[str, Any]:
    around: dict[str, Any] = {} if retention is None else {"retention": retention, "low": retention - 0.02, "high": retention + 0.02}
    return RetentionRow(phase=phase, step=step, suite=suite, kind="answers", items=100, before=0.8, after=0.7, **around).to_row()


def run(root: Path, name: str, right: int, retention: float | None, **config: Any) -> Path:
    """A run that began at 20 of 100, and kept so much of arithmetic and all of spelling."""
    folder = root / name
    folder.mkdir(parents=True)
    settings = {"name": "shop", "model": "m", "environment": "tests/A-v0", "sft": {"blend_ratio": 0.5, "lr": 1e-4}, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "versions.json").write_text("{}")
    (folder / "seeds.json").write_text("{}")
    with JsonLines(folder / "evaluations.jsonl") as lines:
        lines.append(evaluated("base", 20))
        lines.append(evaluated("sft", right))
    with JsonLines(folder / "retention.jsonl") as lines:
        lines.append(kept("tests/spelling-v0", None if retention is None else 1.0))
        lines.append(kept("tests/arithmetic-v0", retention))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "sweep"
    run(root, "own-only", 70, 0.60, sft={"blend_ratio": 1.0, "lr": 1e-4})
    run(root, "half", 55, 0.99, sft={"blend_ratio": 0.5, "lr": 1e-4})
    run(root, "most", 66, 0.96, sft={"blend_ratio": 0.75, "lr": 1e-4})
    run(root, "worse", 50, 0.90, sft={"blend_ratio": 0.9, "lr": 1e-4})
    return root


def test_the_frontier_is_who_nobody_beats_in_both_and_the_pick_gained_most_of_those_that_kept_enough(sweep: Path) -> None:
    found = find_frontier([sweep], 0.95)
    assert [(one.run, round(100 * one.gain.difference), one.retention, one.on_frontier) for one in found.runs] == [
        ("own-only", 50, 0.60, True), ("most", 46, 0.96, True), ("half", 35, 0.99, True), ("worse", 30, 0.90, False),
    ]  # fmt: skip
    assert found.pick is not None and found.pick.run == "most"
    assert found.pick.settings == ("sft.blend_ratio = 0.75",), "what all runs share says nothing of one"
    assert found.pick.skill == "tests/arithmetic-v0", "the skill that fell most"
    picks = [find_frontier([sweep], least).pick for least in (0.0, 0.98, 0.999)]
    assert [pick.run if pick else None for pick in picks] == ["own-only", "half", None]


def test_the_command_prints_picks_and_draws(sweep: Path, tmp_path: Path) -> None:
    page = tmp_path / "frontier.html"
    told = CliRunner().invoke(app, ["runs", "frontier", str(sweep), "--out", str(page)])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["own-only", "most", "half", "worse"]
    assert "+46.0 (" in lines[2] and "0.960 (0.940 to 0.980) tests/arithmetic-v0" in lines[2] and "picked" in lines[2]
    assert lines[5] == f"picked: {sweep / 'most'}, which gained most of those that kept 0.95 of every skill"
    assert lines[-1] == str(page)
    html = page.read_text()
    assert "<script" not in html and html.count('class="point') == 5, "a dot each, and the ring of the pick"
    row = json.loads(CliRunner().invoke(app, ["runs", "frontier", str(sweep), "--json"]).stdout)
    assert (row["pick"], row["min_retention"], row["runs"][0]["run"], row["runs"][0]["gain"]["n"]) == ("most", 0.95, "own-only", 100)


def test_where_none_kept_enough_none_is_picked_and_the_exit_code_says_so(sweep: Path) -> None:
    told = CliRunner().invoke(app, ["runs", "frontier", str(sweep), "--min-retention", "1.1"])
    assert told.exit_code == 1
    assert told.stdout.splitlines()[-1] == "no run gained and kept 1.1 of every skill"


def test_a_run_that_measured_half_of_it_is_left_out_by_name(sweep: Path) -> None:
    (sweep / "half" / "retention.jsonl").unlink()
    (sweep / "worse" / "evaluations.jsonl").unlink()
    found = find_frontier([sweep], 0.95)
    assert [one.run for one in found.runs] == ["own-only", "most"]
    assert found.left_out == (
        "half: retention was not measured after step 1 of sft, its last evaluated one; give the recipe [retention], and let the run end",
        "worse: it has no sampled evaluation of its base and of a phase; give the recipe evaluation.before = true, and let it end",
    )
    (sweep / "most" / "retention.jsonl").unlink()
    with pytest.raises(ValueError, match=r"two runs at least are needed .*\nhalf: .*\nmost: retention was not measured"):
        find_frontier([sweep], 0.95)


def test_runs_that_measured_other_things_are_refused(sweep: Path, tmp_path: Path) -> None:
    other = run(tmp_path, "other", 60, 0.9, environment="tests/B-v0")
    with pytest.raises(ValueError, match="were not measured alike: they differ in environment"):
        find_frontier([sweep, other], 0.95)
    (sweep / "most" / "retention.jsonl").write_text(json.dumps(kept("tests/reading-v0", 0.9)) + "\n")
    with pytest.raises(ValueError, match=r"measured other suites: .*tests/reading-v0"):
        find_frontier([sweep], 0.95)
    with pytest.raises(ValueError, match="is no run folder and holds none"):
        find_frontier([tmp_path / "nowhere"], 0.95)


@pytest.mark.parametrize(
    ("field", "own", "others"),
    [
        ("evaluation.seeds", {"evaluation": {"seeds": [1, 2]}}, {"evaluation": {"seeds": [1, 3]}}),
        ("evaluation.tasks", {"evaluation": {"tasks": 100}}, {"evaluation": {"tasks": 200}}),
        ("retention.items", {"retention": {"items": 50}}, {"retention": {"items": None}}),
        ("retention.samples", {"retention": {"samples": 4}}, {"retention": {"samples": 1}}),
        ("retention.temperature", {"retention": {"temperature": 1.0}}, {}),
        ("success", {"success": "env"}, {"success": "verdict"}),
        ("rollout.temperature", {"rollout": {"temperature": 1.0}}, {"rollout": {"temperature": 0.2}}),
        ("rollout.max_turns", {"rollout": {"max_turns": 1}}, {"rollout": {"max_turns": 8}}),
        ("rollout.max_tokens_per_turn", {"rollout": {"max_tokens_per_turn": 64}}, {"rollout": {"max_tokens_per_turn": 512}}),
        ("rollout.template_args", {"rollout": {"template_args": {"enable_thinking": False}}}, {"rollout": {"template_args": {}}}),
    ],
)
def test_what_was_measured_otherwise_is_not_set_side_by_side(
    tmp_path: Path, field: str, own: dict[str, Any], others: dict[str, Any]
) -> None:
    for name, right, changed in (("a", 40, own), ("b", 50, others)):
        config = run(tmp_path, name, right, 0.96) / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(ValueError, match=f"were not measured alike: they differ in {field}"):
        find_frontier([tmp_path], 0.95)


def test_greedy_evaluations_are_alike_at_any_temperature(tmp_path: Path) -> None:
    for name, right, temperature in (("a", 40, 1.0), ("b", 50, 0.2)):
        folder = run(tmp_path, name, right, 0.96, rollout={"temperature": temperature})
        (folder / "evaluations.jsonl").unlink()
        with JsonLines(folder / "evaluations.jsonl") as lines:
            for phase, count in (("base", 20), ("sft", right)):
                lines.append(evaluated(phase, count, "greedy"))
    assert [one.run for one in find_frontier([tmp_path], 0.95).runs] == ["b", "a"]


@pytest.mark.parametrize(("sooner", "later"), [(0.60, 0.99), (0.99, 0.60)])
def test_a_run_that_went_on_kept_what_it_kept_at_its_last_step(sweep: Path, sooner: float, later: float) -> None:
    """Measured at step 1, and once more after the phase was given more steps: with another suite less."""
    (sweep / "half" / "retention.jsonl").unlink()
    with JsonLines(sweep / "half" / "retention.jsonl") as lines:
        for row in (kept("tests/spelling-v0", 1.0), kept("tests/arithmetic-v0", sooner), kept("tests/reading-v0", 0.1)):
            lines.append(row)
        for row in (kept("tests/spelling-v0", 1.0, step=2), kept("tests/arithmetic-v0", later, step=2)):
            lines.append(row)
    with JsonLines(sweep / "half" / "evaluations.jsonl") as lines:
        lines.append(evaluated("sft", 80, step=2))
    found = {one.run: one for one in find_frontier([sweep], 0.95).runs}
    assert (round(100 * found["half"].gain.difference), found["half"].retention) == (60, later)


def test_all_are_compared_in_one_mode_that_most_of_them_have(sweep: Path) -> None:
    with JsonLines(sweep / "half" / "evaluations.jsonl") as lines:
        for phase, right in (("base", 30), ("sft", 90)):
            lines.append(evaluated(phase, right, "greedy"))
    (sweep / "worse" / "evaluations.jsonl").unlink()
    with JsonLines(sweep / "worse" / "evaluations.jsonl") as lines:
        for phase, right in (("base", 30), ("sft", 99)):
            lines.append(evaluated(phase, right, "greedy"))
    found = find_frontier([sweep], 0.95)
    assert {(one.run, one.mode) for one in found.runs} == {("own-only", "sampled"), ("half", "sampled"), ("most", "sampled")}
    assert found.left_out[0].startswith("worse: it has no sampled evaluation of its base and of a phase")
    greedy = find_frontier([sweep], 0.95, "greedy")
    assert {(one.run, one.mode) for one in greedy.runs} == {("half", "greedy"), ("worse", "greedy")}


@pytest.mark.parametrize("later", [{"rft": {"steps": 3}}, {"phases": [{"kind": "sft"}, {"kind": "dpo", "name": "rft"}]}])
def test_a_run_that_is_under_way_is_left_out_by_name(sweep: Path, later: dict[str, Any]) -> None:
    config = sweep / "most" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **later}))
    found = find_frontier([sweep], 0.95)
    assert [one.run for one in found.runs] == ["own-only", "half", "worse"]
    assert found.left_out == ("most: it has no sampled evaluation after rft, its last phase; let the run end",)


def test_a_retention_without_its_interval_leaves_its_run_out_by_name(sweep: Path, tmp_path: Path) -> None:
    row = {**kept("tests/arithmetic-v0", 0.5), "low": None}
    (sweep / "most" / "retention.jsonl").write_text(json.dumps(row) + "\n")
    told = CliRunner().invoke(app, ["runs", "frontier", str(sweep), "--min-retention", "0", "--out", str(tmp_path / "page.html")])
    assert told.exit_code == 0, told.output
    assert "left out: most: retention.jsonl has no low and high beside the retention of tests/arithmetic-v0" in told.stdout


def test_where_there_was_no_skill_to_keep_gain_alone_counts(tmp_path: Path) -> None:
    run(tmp_path, "a", 40, None)
    run(tmp_path, "b", 50, None)
    found = find_frontier([tmp_path], 0.95)
    assert found.pick is not None and found.pick.run == "b"
    assert [one.on_frontier for one in found.runs] == [True, False]
    assert "no skill above chance to keep" in frontier_page(found)


def test_what_runs_are_called_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    run(tmp_path, "<script>alert(1)<", 40, 0.9)
    run(tmp_path, "b", 50, 0.96)
    page = frontier_page(find_frontier([tmp_path], 0.95))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_dots_are_where_their_values_are() -> None:
    svg = scatter_chart("gain", [Dot("a", 0.5, 0.0, best=True), Dot("b", 1.0, 10.0, best=True, picked=True)], "retention", 0.95)
    assert 'cx="46"' in svg and 'cx="568"' in svg, "the ends of the axis, from 0.5 to 1"
    assert svg.count("<circle") == 3 and svg.count('class="curve faint"') == 1
    assert scatter_chart("gain", [Dot("a", float("nan"), 0.0)], "retention") == ""


def test_dots_need_no_line_of_what_x_should_be() -> None:
    svg = scatter_chart("gain", [Dot("a", 0.5, 0.0), Dot("b", 1.0, 10.0)], "retention")
    assert svg.count("<circle") == 2 and 'class="constant"' not in svg
