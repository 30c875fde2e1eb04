"""Two runs or more side by side: what they were given, what their evaluations say of the same tasks, and their curves in one drawing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..rollout.store.records import Comparison, EvaluationRecord, Mode
from ..trainer.evaluation.comparison import compare
from .charts import Series, overlay_chart
from .drift import evaluation_place, first_difference, played_by
from .library import Library
from .rendering import environment, write_page
from .report import metric_rank
from .runs import MODES, RecordedRun, final_evaluations, phases_of, read_run, series_of

MOST = 6
"""Runs that are compared at once: a drawing has so many colours."""
MOVED = 5
"""Tasks that are named on either side of a comparison."""
REWARD = "reward"


@dataclass(frozen=True, slots=True)
class Paired:
    """An evaluation of a run beside that of the first, `base`: after the same phase, in the same mode, over the tasks that both scored.

    change: the run's success minus the first's, None where fewer than two tasks are shared or success is another part. better, worse: the
    tasks that moved most, each with success before and after.
    """

    base: str
    run: str
    phase: str
    mode: Mode
    first: EvaluationRecord
    record: EvaluationRecord
    change: Comparison | None
    better: tuple[tuple[str, float, float], ...]
    worse: tuple[tuple[str, float, float], ...]

    @property
    def places(self) -> tuple[str, str]:
        """Where the episodes of both evaluations are."""
        return evaluation_place(self.base, self.first), evaluation_place(self.run, self.record)

    def to_row(self) -> dict[str, Any]:
        """As plain JSON."""
        change = self.change
        row: dict[str, Any] = {"run": self.run, "phase": self.phase, "mode": self.mode, "success": self.record.result.success}
        row |= {"first": self.first.result.success, "better": [*map(list, self.better)], "worse": [*map(list, self.worse)]}
        if change is not None:
            row["change"] = {name: getattr(change, name) for name in ("difference", "low", "high", "p_value", "p_worse", "n", "test")}
        return row


@dataclass(frozen=True, slots=True)
class Overlay:
    """The curves of one metric of one phase, of every run that has it."""

    phase: str
    name: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class SideBySide:
    """What there is to see. settings: field -> its value in each run, as text, of those that are not everywhere the same. success: a
    drawing for each mode that is compared."""

    runs: tuple[RecordedRun, ...]
    settings: Mapping[str, tuple[str, ...]]
    paired: tuple[Paired, ...]
    success: Mapping[Mode, Markup]
    curves: Mapping[str, tuple[Overlay, ...]]

    def to_row(self) -> dict[str, Any]:
        """Settings and evaluations as plain JSON; the curves are in the runs' metrics."""
        names = [run.name for run in self.runs]
        settings = {field: dict(zip(names, values, strict=True)) for field, values in self.settings.items()}
        return {"schema": 1, "runs": names, "settings": settings, "evaluations": [pair.to_row() for pair in self.paired]}


def side_by_side(paths: Sequence[Path]) -> SideBySide:
    """Read and compare runs, all with the first. Raises ValueError for fewer than two, more than `MOST`, the same twice, or no runs."""
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    if not 2 <= len(folders) <= MOST:
        raise ValueError(f"2 to {MOST} different runs can be compared at once, not {len(folders)}")
    runs = tuple(read_run(folder) for folder in folders)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two of the runs are called {max(names, key=names.count)!r}; rename a folder, so that they can be told apart")
    phases = phases_of(row for run in runs for row in run.metrics)
    return SideBySide(
        runs=runs,
        settings=other_settings([run.config for run in runs]),
        paired=tuple(pair for run in runs[1:] for pair in paired(runs[0], run)),
        success=_success(runs),
        curves={phase: tuple(overlays(runs, phase)) for phase in phases},
    )


def other_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Each leaf of the configs that is not the same everywhere, as JSON; "–" where a config has none.

    Example: `other_settings([{"rft": {"lr": 1e-5}}, {"rft": {"lr": 3e-5}}]) == {"rft.lr": ("1e-05", "3e-05")}`.
    """
    flat = [dict(_leaves(config)) for config in configs]
    fields = sorted({field for one in flat for field in one})
    rows = {field: tuple(one.get(field, "–") for one in flat) for field in fields}
    return {field: values for field, values in rows.items() if len(set(values)) > 1}


def paired(first: RecordedRun, run: RecordedRun) -> Iterator[Paired]:
    """The last evaluations of each phase that both runs have, task by task where both played the same tasks of the same environment, in as
    many turns and tokens and at the same temperature."""
    for mode in MODES:
        played_alike = first_difference([first.config, run.config], played_by(mode)) is None
        before, after = (final_evaluations(one.evaluations, mode) for one in (first, run))
        for phase in (phase for phase in before if phase in after):
            old, new = before[phase].result, after[phase].result
            shared = sorted(old.task_success.keys() & new.task_success.keys())
            alike = played_alike and old.success_part == new.success_part and len(shared) > 1
            moves = [(task, old.task_success[task], new.task_success[task]) for task in shared] if alike else []
            moves.sort(key=lambda move: (move[1] - move[2], move[0]))
            yield Paired(
                first.name,
                run.name,
                phase,
                mode,
                before[phase],
                after[phase],
                compare(old, new) if alike else None,
                tuple(move for move in moves[:MOVED] if move[2] > move[1]),
                tuple(move for move in reversed(moves[-MOVED:]) if move[2] < move[1]),
            )


def comparison_page(paths: Sequence[Path]) -> str:
    """The comparison as one page that needs nothing else: no network, no script."""
    folder = Path(__file__).parent / "pages"
    style = Markup((folder / "static" / "style.css").read_text())  # a file of ours
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment(folder / "templates").get_template("comparison_report.html.jinja").render(
        found=side_by_side(paths), style=style, made=made, to=None
    )  # fmt: skip


def write_comparison(paths: Sequence[Path], target: Path) -> Path:
    """Write that page into a file, whole or not at all, and return its path. Raises ValueError as `side_by_side` does."""
    return write_page(comparison_page(paths), target)


def _leaves(data: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Each value that is no table, with its dotted field; lists of tables by their numbers."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _leaves(value, f"{field}.{key}" if field else str(key))
    elif isinstance(data, list) and data and all(isinstance(one, Mapping) for one in data):
        for number, value in enumerate(data):
            yield from _leaves(value, f"{field}.{number}")
    else:
        yield field, json.dumps(data, ensure_ascii=False)


def _success(runs: Sequence[RecordedRun]) -> dict[Mode, Markup]:
    """Success on held-out tasks with its intervals: in the first mode that every evaluated run has, or else a drawing for each mode, of the
    runs that have it. Evaluations after the same step of the same phase stand over each other, in the order of the phases."""
    rank = {phase: i for i, phase in enumerate(_merged([phases_of(run.evaluations) for run in runs]))}
    shared = [mode for mode in MODES if all(_successes(run, mode) for run in runs if run.evaluations)]
    drawn = dict[Mode, Markup]()
    for mode in shared[:1] or MODES:
        found = [_successes(run, mode) for run in runs]
        places = sorted({place for one in found for place in one}, key=lambda place: (rank[place[0]], place[1]))
        points = [tuple((x, *one[at]) for x, at in enumerate(places) if at in one) for one in found]
        lines = [Series(run.name, its) for run, its in zip(runs, points, strict=True)]
        svg = overlay_chart(f"success on held-out tasks, {mode}", lines, "evaluation", [f"{phase} step {step}" for phase, step in places])
        if svg:
            drawn[mode] = svg
    return drawn


def _successes(run: RecordedRun, mode: Mode) -> dict[tuple[str, int], tuple[float, float, float]]:
    """(phase, step) -> success with its interval; of a step that was evaluated again after a resume, the later."""
    rows = [record for record in run.evaluations if record.result.mode == mode]
    return {(one.phase, one.step): (one.result.success, one.result.success_low, one.result.success_high) for one in rows}


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """All that the lists have, in the order of each as far as they agree. Example: `_merged(["ac", "abc"]) == ["a", "b", "c"]`."""
    merged = list[str]()
    for one in lists:
        for i, name in enumerate(one):
            if name not in merged:
                later = [merged.index(other) for other in one[i + 1 :] if other in merged]
                merged.insert(min(later, default=len(merged)), name)
    return merged


def overlays(runs: Sequence[RecordedRun], phase: str) -> Iterator[Overlay]:
    """The reward of the stored episodes with intervals, then every metric that two runs or more have, those that say most first."""
    stored = [Series(run.name, tuple(Library(run.path / "episodes").rewards(phase))) for run in runs]
    if any(series.points for series in stored):
        yield Overlay(phase, REWARD, overlay_chart(f"{REWARD}, with the 95 % interval of its mean over tasks", stored, "step"))
    curves = [series_of(run.metrics, phase) for run in runs]
    counts = {name: sum(name in one for one in curves) for one in curves for name in one}
    for name in sorted((name for name, count in counts.items() if count > 1), key=lambda name: (metric_rank(name), name)):
        lines = [
            Series(run.name, tuple((step, value, value, value) for step, value in one.get(name, ())))
            for run, one in zip(runs, curves, strict=True)
        ]
        svg = overlay_chart(name, lines, "step")
        if svg:
            yield Overlay(phase, name, svg)
