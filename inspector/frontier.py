"""Gain against retention: what each run of a sweep won on its own tasks, what it kept of the skills it had, and which of them to take.

A run is on the frontier when no other won as much and kept as much, and more of one of them. The gain is that of the last evaluated phase
over the base on the same held-out tasks; retention is that of the skill that fell most (`trainer.evaluation.suites.transitions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..rollout.store.records import Comparison, EvaluationRecord, EvaluationResult, Mode, RetentionRow
from ..trainer.evaluation.comparison import compare
from .blends import recorded_phases
from .charts import Dot, is_best, scatter_chart
from .comparing import other_settings
from .drift import first_difference, played_by
from .pages.runs import list_runs
from .rendering import environment, write_page
from .runs import MODES, RecordedRun, final_evaluations, read_run

BASE = "base"
LOCAL = ("name", "run_dir")
"""Settings that do not say what a run tried."""
MEASURED = ("success", "evaluation.seeds", "evaluation.tasks", "retention.items", "retention.samples", "retention.temperature")
"""Settings that say what gain and retention were measured on, beside those of `drift.played_by`; suites are compared by what was recorded
of them."""


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """One run. phase: what the gain was measured after, over the base, in `mode`. skill: the suite that kept least, with `retention`, its
    95 % interval [low, high] and both scores in words; all None where no suite had a skill above chance. settings: what the run was given
    that others were not. on_frontier: no other run is better in both.
    """

    run: str
    path: Path
    phase: str
    mode: Mode
    success: float
    gain: Comparison
    skill: str | None
    retention: float | None
    low: float | None
    high: float | None
    settings: tuple[str, ...]
    on_frontier: bool = False

    def to_row(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "path": str(self.path), "settings": [*self.settings]}


@dataclass(frozen=True, slots=True)
class Frontier:
    """The runs, those that gained most first. pick: the one that gained most among those that kept `min_retention`, None when none did.
    left_out: why a run is not among them, a line each."""

    runs: tuple[Tradeoff, ...]
    min_retention: float
    pick: Tradeoff | None
    left_out: tuple[str, ...]

    def to_row(self) -> dict[str, Any]:
        """As plain JSON."""
        picked = self.pick.run if self.pick else None
        runs = [one.to_row() for one in self.runs]
        return {"schema": 1, "min_retention": self.min_retention, "pick": picked, "runs": runs, "left_out": [*self.left_out]}


def find_frontier(paths: Sequence[Path], min_retention: float, mode: Mode | None = None) -> Frontier:
    """Read runs, and those in folders of runs, and set them against each other. mode: of the evaluations of all of them; left out,
    the one that most of them have, sampled where as many have both.

    Raises ValueError when fewer than two can be compared, saying why, or when they were not measured on the same tasks and suites.
    """
    folders = dict.fromkeys(line.path.resolve() for path in paths for line in _runs_in(path))
    recorded = [read_run(folder) for folder in folders]
    names = [run.name for run in recorded]
    if len(set(names)) < len(names):
        raise ValueError(f"two of the runs are called {max(names, key=names.count)!r}; rename a folder, so that they can be told apart")
    settings = other_settings([run.config for run in recorded])
    most: Mode = max(MODES, key=lambda one: sum(_is_measured(run, one) for run in recorded))  # of two equals the first
    used = mode or most
    found, left_out = list[Tradeoff](), list[str]()
    for i, run in enumerate(recorded):
        varied = tuple(f"{field} = {values[i]}" for field, values in settings.items() if field.split(".")[0] not in LOCAL)
        try:
            found.append(_tradeoff(run, used, varied))
        except ValueError as error:
            left_out.append(str(error))
    if len(found) < 2:
        raise ValueError("\n".join(["two runs at least are needed that measured gain and retention", *left_out]))
    _check_alike([run for run in recorded if any(one.run == run.name for one in found)], used)
    runs = tuple(sorted((replace(one, on_frontier=is_on_frontier(one, found)) for one in found), key=lambda one: -one.gain.difference))
    return Frontier(runs, min_retention, pick_of(runs, min_retention), tuple(left_out))


def is_on_frontier(one: Tradeoff, runs: Sequence[Tradeoff]) -> bool:
    """Whether no run gained and kept at least as much, and more of one of them. Where nothing was to be kept, gain alone counts."""
    return is_best(_place(one), map(_place, runs))


def pick_of(runs: Sequence[Tradeoff], min_retention: float) -> Tradeoff | None:
    """The run that gained most among those that kept so much; of two, the one that kept more. None when none did, or none gained."""
    kept = [one for one in runs if one.gain.difference > 0 and (one.retention is None or one.retention >= min_retention)]
    return max(kept, key=_place, default=None)


def frontier_page(found: Frontier) -> str:
    """The drawing and the table as one page that needs nothing else: no network, no script."""
    dots = [
        Dot(one.run, one.retention, 100 * one.gain.difference, one.on_frontier, one is found.pick)
        for one in found.runs
        if one.retention is not None
    ]
    folder = Path(__file__).parent / "pages"
    style = Markup((folder / "static" / "style.css").read_text())  # a file of ours
    return environment(folder / "templates").get_template("frontier.html.jinja").render(
        found=found,
        drawing=scatter_chart("points gained over the base, against retention", dots, "retention", found.min_retention),
        style=style,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )  # fmt: skip


def write_frontier(found: Frontier, target: Path) -> Path:
    """Write that page into a file, whole or not at all, and return its path. Raises ValueError when its folder is not there."""
    return write_page(frontier_page(found), target)


def _runs_in(path: Path) -> list[Any]:
    found = list_runs(path)
    if not found:
        raise ValueError(f"{path} is no run folder and holds none; give runs, or a folder of runs such as `burnish tune` leaves")
    return sorted(found, key=lambda line: line.name)


def _is_measured(run: RecordedRun, mode: Mode) -> bool:
    records = final_evaluations(run.evaluations, mode)
    return BASE in records and len(records) > 1


def _tradeoff(run: RecordedRun, mode: Mode, settings: tuple[str, ...]) -> Tradeoff:
    """Raises ValueError, a line that names the run, when it did not measure both."""
    before, last = _ends(run, mode)
    after, phase, rows = last.result, last.phase, _retention_at(run, last)
    if not rows:
        where = f"after step {last.step} of {phase}, its last evaluated one"
        raise ValueError(f"{run.name}: retention was not measured {where}; give the recipe [retention], and let the run end")
    least = min((row for row in rows if row.retention is not None), key=lambda row: row.retention or 0.0, default=None)
    gain = compare(before, after)
    if least is None:
        return Tradeoff(run.name, run.path, phase, mode, after.success, gain, None, None, None, None, settings)
    if least.low is None or least.high is None:
        raise ValueError(f"{run.name}: retention.jsonl has no low and high beside the retention of {least.suite}")
    return Tradeoff(run.name, run.path, phase, mode, after.success, gain, least.suite, least.retention, least.low, least.high, settings)


def _ends(run: RecordedRun, mode: Mode) -> tuple[EvaluationResult, EvaluationRecord]:
    """The evaluations of the base and after the run's last phase. Raises ValueError when it lacks one of them."""
    if not _is_measured(run, mode):
        raise ValueError(
            f"{run.name}: it has no {mode} evaluation of its base and of a phase; give the recipe evaluation.before = true, and let it end"
        )
    records = final_evaluations(run.evaluations, mode)
    planned = [name for name, *_ in recorded_phases(run.config)]
    phase = planned[-1] if planned else list(records)[-1]
    if phase not in records:
        raise ValueError(f"{run.name}: it has no {mode} evaluation after {phase}, its last phase; let the run end")
    return records[BASE].result, records[phase]


def _retention_at(run: RecordedRun, last: EvaluationRecord) -> list[RetentionRow]:
    """What was kept at the step of an evaluation: a run that went on has rows of earlier steps of the phase too."""
    return [row for row in run.retention if (row.phase, row.step) == (last.phase, last.step)]


def _check_alike(runs: Sequence[RecordedRun], mode: Mode) -> None:
    """Raises ValueError when two runs measured other things, so that their places say nothing of each other."""
    first = runs[0]
    for run in runs[1:]:
        field = first_difference([first.config, run.config], [*played_by(mode), *MEASURED])
        if field is not None:
            raise ValueError(f"{first.name} and {run.name} were not measured alike: they differ in {field}")
        ours, theirs = (", ".join(_suites(one, mode)) for one in (first, run))
        if ours != theirs:
            raise ValueError(f"{first.name} and {run.name} measured other suites: {ours} and {theirs}")


def _suites(run: RecordedRun, mode: Mode) -> list[str]:
    return sorted({row.suite for row in _retention_at(run, _ends(run, mode)[1])})


def _place(one: Tradeoff) -> tuple[float, float]:
    return one.gain.difference, 1.0 if one.retention is None else one.retention
