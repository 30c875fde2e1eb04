"""Reading run folders, printing transcripts and the report: figures arrive, and model text can neither steer a terminal nor a page."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from burnish.inspector.charts import Whisker, line_chart, nice_ticks, running_mean, whisker_chart
from burnish.inspector.comparing import overlays, paired
from burnish.inspector.report import before_and_after, curves_of, facts_of, headline, metric_rank, render_report, write_report
from burnish.inspector.runs import MetricRow, RecordedRun, final_evaluations, read_metrics, read_run, read_run_transcripts, series_of
from burnish.inspector.terminal import Selection, print_rollouts, render, select
from burnish.inspector.text import number, percent, printable
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.records import BestConstant, Comparison, EvaluationRecord, EvaluationResult, LedgerRow
from burnish.rollout.store.transcripts import StoredFailure, StoredReward, StoredTurn, Transcript, TranscriptWriter

pytestmark = pytest.mark.unit

EVIL = (
    '<script>alert("x")</script> [bold red]loud[/bold red] [link=http://x]l[/link] '
    ":bomb: \x1b[31m\x1b]0;title\x07 \u202edesrever \ud800 \r\x00"
)


def transcript(episode: str = "heldout-1/0", total: float | None = 1.0, text: str = "scrap", **changes: Any) -> Transcript:
    call = {"id": "c", "type": "function", "function": {"name": "measure", "arguments": {"part": 17, "feature": text}}}
    messages = ({"role": "user", "content": "Inspect."}, {"role": "assistant", "content": text, "tool_calls": [call]})
    given: dict[str, Any] = {
        "run": "r", "phase": "rft", "step": 1, "split": "heldout", "mode": "sampled", "episode": episode,
        "task": episode.split("/")[0], "seed": 1, "sample": 0, "messages": messages, "trainable_tokens": 3, "context_tokens": 9,
        "reward": None if total is None else StoredReward(total=total, parts={"verdict": total}),
        "failure": StoredFailure(kind="tool_timeout", culprit="gauge", detail=text) if total is None else None,  # type: ignore[arg-type]
    }  # fmt: skip
    return Transcript(**{**given, **changes})


def evaluation(phase: str, success: float, mode: Any = "sampled", step: int = 1, **changes: Any) -> EvaluationRecord:
    given: dict[str, Any] = {
        "mode": mode, "success_part": "verdict", "episodes": 4, "rewarded": 3, "success": success, "success_low": success - 0.1,
        "success_high": success + 0.1, "reward": success, "turns": 2.5, "tokens": 40.0, "task_success": {"t1": 1.0, "t2": 0.0},
        "parts": {"verdict": success, "cost": -0.25}, "metrics": {"tool_calls": 3.0, "cost": 4.0},
        "confusion": {"pass": {"pass": 2, "": 1}}, "recall": {"pass": 2 / 3}, "macro_recall": 2 / 3,
        "best_constant": BestConstant("pass", 0.625, 0.5), "failures": {"tool_timeout": 1},
    }  # fmt: skip
    against = changes.pop("against", {})
    return EvaluationRecord(phase=phase, step=step, against=against, result=EvaluationResult(**{**given, **changes}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo-1"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"name": "demo", "model": "nano", "environment": "burnish/QualityInspection-v0", "note": EVIL})
    )
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.9", "packages": {"ray": "2.60.0"}}))
    (folder / "seeds.json").write_text(json.dumps({"run": 7}))
    with JsonLines(folder / "metrics.jsonl") as lines:
        lines.append({"phase": "sft", "step": 1, "time": 10.0, "loss": 2.0, "seconds": 10.0})
        lines.append({"phase": "rft", "step": 1, "time": 20.0, "reward_mean": 0.25, EVIL: 1.0})
        lines.append({"phase": "rft", "step": 2, "time": 85.0, "reward_mean": 0.5, "step_seconds": 65.0})
    with JsonLines(folder / "evaluations.jsonl") as lines:
        lines.append(evaluation("sft", 0.4).to_row())
        lines.append(evaluation("rft", 0.5).to_row())
        lines.append(evaluation("rft", 0.8125, step=2, against={"sft": Comparison(0.4125, 0.3, 0.5, 0.0004, 2)}).to_row())
    with JsonLines(folder / "ledger.jsonl") as lines:
        lines.append(LedgerRow(phase="rft", step=1, issued=10, trained=10).to_row())
        lines.append(
            LedgerRow(phase="rft", step=2, issued=20, trained=12, masked={"tool_timeout": 1}, dropped={"zero_variance": 6}).to_row()
        )
    with TranscriptWriter(folder / "transcripts" / "evaluation.jsonl") as writer:
        writer.write(transcript(total=0.0, text=EVIL, phase="sft"))
        writer.write(transcript(total=1.0, text=EVIL))
        writer.write(transcript("train-5/1", None, EVIL, split="train"))
    return folder


# ------------------------------------------------------------------------------------------------------------------ text


def test_printable_shows_what_would_steer_a_terminal() -> None:
    assert printable("\x1b[31mred\x07\r") == "\\x1b[31mred\\x07\\x0d"
    assert printable("a\u202eb\u2028\ud800\x85\U000e0041") == "a\\u202eb\\u2028\\ud800\\x85\\U000e0041"
    kept = "tab\tand\nline, ü, 漢, 👩\u200d🔧 [bold]"
    assert printable(kept) == kept


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0, 0.8125, 12345.6, 5.12e-5, -0.25, 3.0)] == ["0", "0.8125", "12,346", "5.12e-05", "-0.25", "3"]
    assert percent(0.8125) == "81.2 %"


# ------------------------------------------------------------------------------------------------------------------ runs


def test_a_run_is_read(run: Path) -> None:
    read = read_run(run)
    assert (read.name, read.seeds["run"], len(read.metrics), len(read.ledger)) == ("demo-1", 7, 3, 2)
    assert series_of(read.metrics, "rft")["reward_mean"] == [(1, 0.25), (2, 0.5)]
    final = final_evaluations(read.evaluations, "sampled")
    assert {phase: record.result.success for phase, record in final.items()} == {"sft": 0.4, "rft": 0.8125}
    assert final_evaluations(read.evaluations, "greedy") == {}
    assert [t.episode for t in read_run_transcripts(run)] == ["heldout-1/0", "heldout-1/0", "train-5/1"]


def test_a_run_that_has_only_begun_is_read_and_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    read = read_run(tmp_path)
    assert (read.metrics, read.evaluations, read.ledger) == ((), (), ())
    page = render_report(read, read_run_transcripts(tmp_path))
    for text in ("No evaluation yet", "No training step yet", "No ledger yet", "No transcript yet"):
        assert text in page


def test_of_a_step_taken_again_after_a_resume_the_later_row_counts(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "metrics.jsonl") as lines:
        for step, loss in ((1, 3.0), (2, 9.0), (2, 2.0)):
            lines.append({"phase": "sft", "step": step, "time": 0, "loss": loss})
    assert series_of(read_metrics(tmp_path / "metrics.jsonl"), "sft") == {"loss": [(1, 3.0), (2, 2.0)]}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        read_run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    for row, message in (
        ({"phase": "sft", "step": 1}, "needs 'time'"),
        ({"phase": "x", "step": 1, "time": 1, "loss": "low"}, "metric 'loss' is 'low'"),
    ):
        metrics.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=f"metrics.jsonl:1: .*{message}"):
            list(read_metrics(metrics))


# -------------------------------------------------------------------------------------------------------------- terminal


def printed(run: Path, selection: Selection, color: bool = False) -> str:
    out = io.StringIO()
    print_rollouts(run, selection, Console(file=out, width=120, force_terminal=color, color_system="truecolor" if color else None))
    return out.getvalue()


def test_a_transcript_prints_readably(run: Path) -> None:
    text = printed(run, Selection(order="best", limit=1))
    for expected in ("heldout-1/0", "rft step 1", "assistant", "→ measure(part=17", "reward 1", "verdict 1", "3 sampled of 9 tokens"):
        assert expected in text
    assert "failed: tool_timeout in gauge:" in printed(run, Selection(failed=True))


def test_values_per_turn_print_beside_their_part() -> None:
    turn = StoredTurn(tokens=1, stop_reason="stop", generate_s=0.1, env_s=0.1, oldest_version=1, newest_version=1)
    stored = StoredReward(total=-0.5, parts={"brief": -0.5, "env": 0.0}, turns={"brief": (-0.2, -0.3)})
    out = io.StringIO()
    Console(file=out, width=120).print(render(transcript(reward=stored, turns=(turn, turn), schema_version=2)))
    assert "brief -0.5 (-0.2, -0.3 by turn)  env 0" in out.getvalue()


def test_what_the_prompt_says_of_tools_is_shown_where_it_is_asked_for() -> None:
    count = {"type": "function", "function": {"name": "count", "description": "Counts \x1b[31mbolts."}}
    shown = transcript(tools=(count,), schema_version=3)

    def text(**how: bool) -> str:
        out = io.StringIO()
        Console(file=out, width=160).print(render(shown, **how))
        return out.getvalue()

    assert "Counts" not in text()
    assert '{"type": "function", "function": {"name": "count", "description": "Counts \\u001b[31mbolts."}}' in text(tools=True)


def test_a_failed_episode_shows_what_was_said_before(run: Path) -> None:
    text = printed(run, Selection(failed=True))
    assert text.index("assistant") < text.index("failed: tool_timeout in gauge:")


@pytest.mark.parametrize("color", [False, True])
def test_model_text_cannot_steer_the_terminal(run: Path, color: bool) -> None:
    text = printed(run, Selection(), color)
    assert "[bold red]loud[/bold red]" in text
    assert "[link=http://x]l[/link]" in text
    assert ":bomb:" in text
    assert "\\x1b[31m" in text
    assert "\\u202e" in text
    styles = re.findall(r"\x1b\[[0-9;]*m", text)  # what rich itself emits, nothing else
    assert text.count("\x1b") == len(styles)
    assert bool(styles) is color
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202e\ud800]", text)


def test_selection_by_reward_and_by_place() -> None:
    rows = [transcript(f"t-{i}/0", total, step=i) for i, total in enumerate((0.5, None, -1.0, 1.0))]
    assert [t.episode for t in select(rows, Selection(order="best", limit=2))] == ["t-3/0", "t-0/0"]
    assert [t.episode for t in select(rows, Selection(order="worst", limit=2))] == ["t-2/0", "t-0/0"]
    assert [t.episode for t in select(rows, Selection(limit=2))] == ["t-2/0", "t-3/0"]
    assert [t.episode for t in select(rows, Selection(step=1))] == ["t-1/0"]
    assert [t.episode for t in select(rows, Selection(failed=False, limit=9))] == ["t-0/0", "t-2/0", "t-3/0"]


def test_an_empty_selection_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="no transcript of phase 'rtf'; did you mean 'rft'"):
        select([transcript()], Selection(phase="rtf"))
    with pytest.raises(ValueError, match="no transcript of episode 'heldout-2/0'; did you mean 'heldout-1/0'"):
        select([transcript()], Selection(episode="heldout-2/0"))
    with pytest.raises(ValueError, match="no transcript of split 'evaluation'; known are heldout"):
        select([transcript()], Selection(split="evaluation"))
    with pytest.raises(ValueError, match="has phases rft"):
        select([transcript()], Selection(step=5))
    with pytest.raises(ValueError, match="no transcripts yet"):
        select([], Selection())
    with pytest.raises(ValueError, match="at least 1"):
        select([transcript()], Selection(limit=0))


# ---------------------------------------------------------------------------------------------------------------- charts


def test_ticks_are_round_and_enclose_the_data() -> None:
    assert nice_ticks(0.13, 0.87) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(0.0, 40.0) == [0, 10, 20, 30, 40]
    for low, high in ((5.0, 5.0), (0.0, 0.0), (-3e-5, 2e-5), (1e6, 1e6 + 1)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 2 <= len(ticks) <= 12


def test_running_mean_shrinks_at_the_ends() -> None:
    assert running_mean([0.0, 3.0, 6.0, 3.0], 3) == [1.5, 3.0, 4.0, 4.5]


def test_a_curve_runs_from_corner_to_corner() -> None:
    svg = line_chart("loss", [(1, 0.0), (2, float("nan")), (3, 10.0)])
    root = ET.fromstring(svg)
    (points,) = [node.get("points") for node in root.iter("polyline")]
    assert points == "46,130 332,8", "the lowest value at the bottom left, the highest at the top right, the gap left out"
    assert [node.text for node in root.iter("title")] == ["step 1: 0", "step 3: 10"]
    assert line_chart("loss", [(1, float("inf"))]) == ""
    assert ET.fromstring(line_chart("one", [(5, 1.0)])) is not None


def test_long_curves_are_smoothed_and_chart_names_are_escaped() -> None:
    root = ET.fromstring(line_chart(f"a{EVIL}", [(i, float(i % 2)) for i in range(500)]))
    assert [node.get("class") for node in root.iter("polyline")] == ["curve faint", "curve"]
    assert "<script>" in (root.get("aria-label") or ""), "parsed back as text, not as an element"
    assert not list(root.iter("title"))
    assert ET.fromstring(whisker_chart([Whisker(EVIL, 0.5, 0.4, 0.6, True, None)])) is not None


# ---------------------------------------------------------------------------------------------------------------- report


class Page(HTMLParser):
    """Collects elements, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_shows_the_figures(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert (
        "Sampled success went from 40.0 % (supervised fine-tuning) to 81.2 % on 2 held-out tasks; always saying “pass” would score 62.5 %."
        in text
    )
    for expected in (
        "burnish/QualityInspection-v0", "ray 2.60.0", "1 min 15 s", "71.2 % \N{EN DASH} 91.2 %, n = 2",
        "+41.2 points against sft +30.0 to +50.0, one-sided p = 0.0004, bootstrap, n = 2",
        "66.7 %", "62.5 % · 50.0 %", "1 of 4", "zero_variance 6", "1 missing", "tool_timeout", "largest gain", "reward_mean",
    ):  # fmt: skip
        assert expected in text, expected
    assert list(run.glob(".report*")) == [], "written whole, nothing left beside it"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("sft", 1, {"seconds": 30.0}), ("rft", 1, {"step_seconds": 61.0, "seconds": 2.0})], "1 min 31 s of 2 training steps"),
        ([("rft", 1, {"step_seconds": 5.0}), ("rft", 1, {"step_seconds": 7.0})], "0 min 07 s of 1 training step"),
        ([("rft", 1, {"step_seconds": 5.0}), ("rft", 2, {}), ("rft", 3, {"seconds": 1e300})], "0 min 05 s of 1 of 3 training steps"),
        ([("rft", 1, {})], None),
        ([], None),
    ],
)
def test_the_time_is_that_of_the_steps_and_not_of_the_days_before_a_resume(
    tmp_path: Path, rows: list[tuple[str, int, dict[str, float]]], said: str | None
) -> None:
    metrics = tuple(MetricRow(phase, step, 1e9 + 3 * 86400.0 * i, values) for i, (phase, step, values) in enumerate(rows))
    facts = dict(facts_of(RecordedRun(tmp_path, {}, {}, {}, metrics, (), ())))
    assert facts.get("Time") == (said and f"{said}, without evaluations and checkpoints")


def test_the_report_is_self_contained_and_escapes_everything(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "iframe", "link", "img", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "srcset")]
    assert "default-src 'none'" in html
    assert '<script>alert("x")</script>' in page.text, "the model's words are there, as text"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)


def test_pairs_show_the_largest_gain_the_largest_loss_and_one_nobody_chose() -> None:
    totals = {"a/0": (0.0, 1.0), "b/0": (0.5, 0.6), "c/0": (1.0, 0.0), "d/0": (0.2, 0.9)}
    held_out = {}
    for episode, (before, after) in totals.items():
        held_out["sft", "sampled", episode] = transcript(episode, before, phase="sft")
        held_out["rft", "sampled", episode] = transcript(episode, after)
    held_out["sft", "sampled", "unpaired/0"] = transcript("unpaired/0", 0.0, phase="sft")
    pairs = before_and_after(held_out, ("sft", "rft"))
    assert [(pair.why, pair.before.episode) for pair in pairs] == [
        ("largest gain", "a/0"),
        ("largest loss", "c/0"),
        ("first of the others", "b/0"),
    ]
    assert all(pair.before.episode == pair.after.episode for pair in pairs)


def test_no_headline_before_two_phases_were_evaluated(run: Path) -> None:
    (run / "evaluations.jsonl").unlink()
    with JsonLines(run / "evaluations.jsonl") as lines:
        lines.append(evaluation("sft", 0.4).to_row())
    assert headline(read_run(run)) is None
    assert "No transcript yet" not in render_report(read_run(run), read_run_transcripts(run)), "the latest are shown instead of pairs"


def test_labels_and_parts_of_an_evaluation_are_escaped(run: Path) -> None:
    with JsonLines(run / "evaluations.jsonl") as lines:
        lines.append(evaluation("<b>x</b>", 0.5, parts={"<i>p</i>": 1.0}, best_constant=BestConstant("<u>l</u>", 0.5, 0.5)).to_row())
    page = Page(render_report(read_run(run), []))
    assert not {"i", "u"} & set(page.tags)
    assert "<u>l</u>" in page.text


@pytest.mark.parametrize("change", [{"step": [1]}, {"step": -1}, {"step": 1.5}, {"time": None}, {"loss": 10**400}])
def test_a_row_of_metrics_that_is_none_is_said_in_a_line(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"phase": "rft", "step": 1, "time": 1.0, "loss": 0.5, **change}) + "\n")
    with pytest.raises(ValueError, match=next(iter(change))):
        list(read_metrics(file))


LOOKED_FOR = [
    "success", "reward_mean", "reward/digits", "reward/env", "held_out_loss", "loss", "learner/loss", "learner/reference_kl",
    "learner/entropy", "episode/tokens", "episode/turns", "truncated", "failed", "failed/tool_timeout", "learner/staleness_mean",
    "learner/staleness_max", "learner/mismatch_kl", "blend/own", "episode/cost", "learner/grad_norm", "learner/lr", "reward_std",
    "busy/engine_seconds", "busy/rewards_seconds", "idle/rewards_seconds", "learner/seconds", "seconds", "step_seconds",
]  # fmt: skip


def test_curves_come_in_the_order_that_people_look_for_them_in_and_seconds_last(tmp_path: Path) -> None:
    assert sorted(sorted(LOOKED_FOR), key=metric_rank) == LOOKED_FOR
    metrics = tuple(MetricRow("rft", step, 1.0, dict.fromkeys(sorted(LOOKED_FOR), 0.5)) for step in (1, 2))
    run, other = (RecordedRun(tmp_path / name, {}, {}, {}, metrics, (), ()) for name in ("a", "b"))
    assert [curve.name for curve in curves_of(run, "rft")] == LOOKED_FOR
    assert re.findall(r"<figcaption><b>([^<]*)<", render_report(run, ())) == LOOKED_FOR
    assert [one.name for one in overlays([run, other], "rft")] == LOOKED_FOR


@pytest.mark.parametrize("name", ["my_success_rate", "reward_seconds", "loss/busy", "a/reward/", "busy", "\nseconds"])
def test_a_metric_that_only_sounds_like_one_is_among_the_others(name: str) -> None:
    assert metric_rank("learner/parity_mean") < metric_rank(name)


def test_runs_of_other_tasks_are_not_paired(tmp_path: Path) -> None:
    success = {"heldout-0": 0.0, "heldout-1": 1.0}
    done = evaluation("rft", 1, task_success=success)

    def run(name: str, **config: Any) -> RecordedRun:
        return RecordedRun(tmp_path / name, config, {}, {}, (), (done,), ())

    first = run("a", environment="tests/A-v0", environment_args={"digits": 1})
    assert next(paired(first, run("b", environment="tests/A-v0", environment_args={"digits": 1}))).change is not None
    assert next(paired(first, run("c", environment="tests/A-v0", environment_args={"digits": 2}))).change is None
