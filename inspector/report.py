"""`report.html`: what a run did, on one page that needs nothing else: no network, no script, every text escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..rollout.store.held_out import reward_of, success_of
from ..rollout.store.records import EvaluationRecord
from ..rollout.store.transcripts import Transcript
from .account import times_of
from .alarms import alarms_of
from .blends import blend_rows
from .charts import Series, Whisker, line_chart, overlay_chart, whisker_chart
from .effort import effort_of, step_seconds
from .held_out import DASHED, held_out_series
from .kept import kept
from .library import Library
from .plots import Curve, frontier_drawing, idle_curves, latencies_of, min_retention, retention_curves
from .rendering import environment, phase_title, write_page
from .runs import MODES, RecordedRun, final_evaluations, final_ledger, phases_of, read_run, read_run_transcripts, series_of
from .text import percent
from .unmeasured import unmeasured

SHOWN_FIRST = (
    "success", "held_out/success", "reward_mean", "held_out/reward_mean", "reward", "reward/", "held_out/", "held_out_loss", "loss",
    "learner/loss", "preferred", "margin", "kl",
    "learner/reference_kl", "entropy", "learner/entropy", "episode/tokens", "episode/turns", "truncated", "failed", "failed/",
    "learner/staleness_mean", "learner/staleness_max", "learner/stale_fraction", "learner/drift_kl", "learner/mismatch_kl",
    "learner/parity_max", "learner/parity_mean",
)  # fmt: skip
"""Metrics in the order that people look for them in, a name that ends in "/" being all that begin with it."""
SHOWN_LAST = re.compile(r"(busy|idle)/.*|(.*[/_])?seconds", re.DOTALL)
"""Metrics that are seconds, which say nothing of what was learned."""
REWARD = "reward, 95 % interval"
CURVES = 12  # per phase; the others are folded away


@dataclass(frozen=True, slots=True)
class Pair:
    """One held-out episode before and after, and why it is shown."""

    why: str
    before: Transcript
    after: Transcript


def write_report(run: Path, target: Path | None = None) -> Path:
    """Write the report of a run, whole or not at all, and return its path: `report.html` in its folder, unless a target is given.

    Raises ValueError when `run` is no run folder, or naming file and line of a row that cannot be read.
    """
    return write_page(render_report(read_run(run), read_run_transcripts(run)), target or run / "report.html")


def render_report(run: RecordedRun, transcripts: Iterable[Transcript]) -> str:
    """The page. transcripts are read once, and only held-out ones of the first and last evaluated phase are kept."""
    evaluated = phases_of(run.evaluations)
    ends = (evaluated[0], evaluated[-1]) if len(evaluated) > 1 else None
    held_out, latest = _gather(transcripts, ends)
    pairs = before_and_after(held_out, ends) if ends else []
    sampled = final_evaluations(run.evaluations, "sampled")
    stored, trained = Library(run.path / "episodes"), phases_of(run.metrics)
    last = list((sampled or final_evaluations(run.evaluations, "greedy")).values())[-1:]
    return environment(Path(__file__).parent).get_template("report.html.jinja").render(
        run=run,
        headline=headline(run),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=facts_of(run),
        unmeasured=unmeasured(run),
        rows=phase_rows(run),
        part_names=sorted({name for record in run.evaluations for name in record.result.parts}),
        whiskers=whisker_chart(_whiskers(run)) if run.evaluations else None,
        last=last[0] if last else None,
        curves={phase: [*reward_curve(stored, run, phase), *success_curve(run, phase), *curves_of(run, phase)] for phase in trained},
        shown=CURVES,
        times=times_of(run),
        idle={phase: idle_curves(run, phase) for phase in phases_of(run.metrics)},
        kept=retention_curves(run),
        min_retention=min_retention(run),
        frontier=frontier_drawing(run),
        latencies=latencies_of(run),
        effort=effort_of(run),
        ledger=final_ledger(run.ledger),
        alarms=alarms_of(run),
        blends=blend_rows(run),
        pairs=pairs,
        latest=[] if pairs else latest,
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )  # fmt: skip


def headline(run: RecordedRun) -> str | None:
    """What the run achieved in one sentence, None before two phases were evaluated in one mode."""
    records = first_and_last(run.evaluations)
    if len(records) < 2:
        return None
    before, after = records[0].result, records[-1].result
    start = f"{percent(before.success)} ({phase_title(records[0].phase).lower()})"
    text = f"{after.mode.capitalize()} success went from {start} to {percent(after.success)} on {len(after.task_success)} held-out tasks"
    if after.best_constant is not None:
        text += f"; always saying “{after.best_constant.label}” would score {percent(after.best_constant.success)}"
    return text + "."


def first_and_last(evaluations: Sequence[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
    """The last evaluation of the first phase that was evaluated, and that of the last, in one mode, sampled before greedy; one alone where
    no two phases were evaluated in one mode, none before any."""
    by_mode = [[*final_evaluations(evaluations, mode).values()] for mode in MODES]
    records = max(by_mode, key=lambda one: min(len(one), 2))  # of equals the first
    return (*records[:1], *records[1:][-1:])


def phase_rows(run: RecordedRun) -> list[EvaluationRecord]:
    """The last evaluation of each phase, sampled before greedy."""
    by_mode = [final_evaluations(run.evaluations, mode) for mode in MODES]
    return [records[phase] for phase in phases_of(run.evaluations) for records in by_mode if phase in records]


def before_and_after(held_out: dict[tuple[str, str, str], Transcript], ends: tuple[str, str]) -> list[Pair]:
    """Held-out episodes of the first and last phase side by side: the largest gain, the largest loss, and one that nobody chose.

    held_out: (phase, mode, episode) -> the latest transcript. Failed episodes are left out.
    """
    pairs = []
    for mode in MODES:
        both = [
            (before, held_out[ends[1], mode, episode])
            for (phase, its_mode, episode), before in held_out.items()
            if (phase, its_mode) == (ends[0], mode) and (ends[1], mode, episode) in held_out
        ]
        if not both:
            continue
        gains = sorted(both, key=lambda pair: _gain(*pair))
        if _gain(*gains[-1]) > 0:
            pairs.append(Pair("largest gain", *gains[-1]))
        if _gain(*gains[0]) < 0:
            pairs.append(Pair("largest loss", *gains[0]))
        rest = [pair for pair in both if pair not in (gains[0], gains[-1])]
        pairs += [Pair("first of the others", *pair) for pair in rest[:1]]
        break
    return pairs


def _gather(
    transcripts: Iterable[Transcript], ends: tuple[str, str] | None
) -> tuple[dict[tuple[str, str, str], Transcript], list[Transcript]]:
    held_out: dict[tuple[str, str, str], Transcript] = {}
    latest: list[Transcript] = []
    for transcript in transcripts:
        latest = [*latest[-2:], transcript]
        if ends and transcript.split == "heldout" and transcript.phase in ends and transcript.reward is not None:
            key = (transcript.phase, transcript.mode, transcript.episode)
            if key not in held_out or held_out[key].step <= transcript.step:
                held_out[key] = transcript
    return held_out, latest


def _gain(before: Transcript, after: Transcript) -> float:
    assert before.reward is not None
    assert after.reward is not None
    return after.reward.total - before.reward.total


def _whiskers(run: RecordedRun) -> list[Whisker]:
    return [
        Whisker(
            f"{record.phase.upper()} {record.result.mode}",
            record.result.success,
            record.result.success_low,
            record.result.success_high,
            record.result.mode == "greedy",
            record.result.best_constant.success if record.result.best_constant else None,
        )
        for record in phase_rows(run)
    ]


def reward_curve(stored: Library, run: RecordedRun, phase: str) -> list[Curve]:
    """The reward of the stored episodes of a phase with its interval, as `Library.rewards` has it, beside that of held-out tasks that were
    played in its course; nothing where none are stored. Raises ValueError as that does."""
    points, measured = stored.rewards(phase), held_out_series(run, phase, reward_of)
    if not points:
        return []
    lines = [Series(f"{REWARD} of its mean over tasks", tuple(points)), *([] if measured is None else [measured])]
    svg = overlay_chart(f"{REWARD} of its mean over tasks", lines, "step")
    return [Curve(f"{REWARD}; {DASHED}" if measured else REWARD, svg, points[0][1], points[-1][1])] if svg else []


def success_curve(run: RecordedRun, phase: str) -> list[Curve]:
    """Success of the episodes of a phase, and on held-out tasks with its interval; nothing where these were not played in its course."""
    measured = held_out_series(run, phase, success_of)
    if measured is None:
        return []
    steps = series_of(run.metrics, phase).get("success", ())
    training = Series("of the episodes of training", tuple((step, value, value, value) for step, value in steps))
    svg = overlay_chart(f"success, {DASHED}, with the 95 % interval", [training, measured], "step")
    return [Curve(f"success; {DASHED}, 95 % interval", svg, measured.points[0][1], measured.points[-1][1])] if svg else []


def curves_of(run: RecordedRun, phase: str) -> list[Curve]:
    """The metrics of a phase, those that say most first."""
    curves = []
    for name, points in sorted(series_of(run.metrics, phase).items(), key=lambda item: (metric_rank(item[0]), item[0])):
        svg = line_chart(name, points)
        if svg:
            curves.append(Curve(name, svg, points[0][1], points[-1][1]))
    return curves


def metric_rank(name: str) -> int:
    """The place of a metric among those that say most, from 0; all others come after them, and seconds last."""
    if SHOWN_LAST.fullmatch(name):
        return len(SHOWN_FIRST) + 1
    group = name.partition("/")[0] + "/"
    for wanted in (name, group):
        if wanted in SHOWN_FIRST:
            return SHOWN_FIRST.index(wanted)
    return len(SHOWN_FIRST)


def facts_of(run: RecordedRun) -> list[tuple[str, str]]:
    """What the head of the page names: recipe, model, environment, seed, time taken, what is left out of the episodes, packages."""
    packages = run.versions.get("packages", {})
    named = [("Recipe", run.config.get("name")), ("Model", run.config.get("model")), ("Environment", run.config.get("environment"))]
    named += [("Seed", run.seeds.get("run", run.config.get("seed"))), ("Time", _duration(run))]
    named += [("Python", run.versions.get("python")), ("Machine", run.versions.get("platform")), ("CPUs", run.versions.get("cpus"))]
    named += [("Episodes", kept(run.path, run.config, run.metrics).line or None)]
    named += [("Packages", ", ".join(f"{name} {version}" for name, version in packages.items()) or None)]
    return [(name, str(value)) for name, value in named if value is not None]


def _duration(run: RecordedRun) -> str | None:
    """What the steps took, none counted twice."""
    steps, taken = {(row.phase, row.step) for row in run.metrics}, step_seconds(run).values()
    if not taken:
        return None
    minutes, seconds = divmod(round(sum(taken)), 60)
    counted = f"{len(taken):,}" if len(taken) == len(steps) else f"{len(taken):,} of {len(steps):,}"
    return f"{minutes} min {seconds:02} s of {counted} training step{'' if len(steps) == 1 else 's'}, without evaluations and checkpoints"
