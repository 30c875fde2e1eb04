"""The drawings of a report beside its curves: what was kept, gain against that, who waited for whom, and how long episodes took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from ..rollout.busy import PARTS, shares
from ..rollout.store.moments import Split
from ..rollout.store.records import RetentionRow
from .account import TITLES
from .charts import WIDTH, Dot, Series, bar_chart, is_best, line_chart, overlay_chart, scatter_chart
from .library import Library
from .runs import MODES, RecordedRun, final_evaluations, phases_of

BASE = "base"


@dataclass(frozen=True, slots=True)
class Curve:
    """A drawing with what it is of, and its first and last value."""

    name: str
    svg: Markup
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long episodes of a phase took, and the scorers that judged them: (what, how many, drawing) of each."""

    phase: str
    split: Split
    drawn: tuple[tuple[str, int, Markup], ...]


def min_retention(run: RecordedRun) -> float | None:
    """The share of each skill that the recipe asks to be left, None where it asks for nothing, or of each phase for another."""
    table = run.config.get("retention")
    least = table.get("min_retention") if isinstance(table, dict) else None
    asked = {row.min_retention for row in run.retention if row.min_retention is not None}
    if asked:
        least = asked.pop() if len(asked) == 1 else None
    return float(least) if isinstance(least, int | float) and 0 < least <= 1 else None


def retention_curves(run: RecordedRun) -> list[Curve]:
    """Of each suite that had a skill, what was left of it after each phase with the 95 % interval, from the whole of it before training."""
    least, suites = min_retention(run), dict[str, dict[str, RetentionRow]]()
    for row in run.retention:
        if row.retention is not None:
            suites.setdefault(row.suite, {})[row.phase] = row
    curves = list[Curve]()
    for suite, rows in suites.items():
        points = ((0, 1.0, 1.0, 1.0), *((i, *_interval(row)) for i, row in enumerate(rows.values(), start=1)))
        svg = overlay_chart(f"{suite}, what was left", [Series(suite, points)], "phase", [BASE, *rows], least)
        if svg:
            curves.append(Curve(f"{suite}, 95 % interval", svg, 1.0, points[-1][1]))
    return curves


def frontier_drawing(run: RecordedRun) -> Markup:
    """Points of success that each phase gained over the base, against what is left of the skill that fell most; "" without any."""
    places = {BASE: (1.0, 0.0), **dict(_tradeoffs(run))}
    if len(places) < 2:
        return Markup("")
    dots = [Dot(phase, *place, best=is_best(place, places.values())) for phase, place in places.items()]
    return scatter_chart("points gained over the base, against retention", dots, "retention", min_retention(run), WIDTH)


def idle_curves(run: RecordedRun, phase: str) -> list[Curve]:
    """Of each role, the share of a step's time in which it had nothing to do; of steps that tell it of every role."""
    steps = {row.step: busy for row in run.metrics if row.phase == phase and (busy := shares(row.values)).keys() == set(PARTS)}
    curves = list[Curve]()
    for part in PARTS:
        points = [(step, 1 - busy[part]) for step, busy in sorted(steps.items()) if 0 <= busy[part] <= 1]
        if points:
            name = f"{TITLES[part]}: idle share"
            curves.append(Curve(name, line_chart(name, points), points[0][1], points[-1][1]))
    return curves


def latencies_of(run: RecordedRun) -> list[Latencies]:
    """Those of the stored training episodes of each phase, or where there is none, of the phase that was evaluated last."""
    library = Library(run.path / "episodes")
    found = [one for phase in phases_of(run.metrics) if (one := _latencies(library, phase, "train")).drawn]
    last = phases_of(run.evaluations)[-1:]
    return found or [one for phase in last if (one := _latencies(library, phase, "heldout")).drawn]


def _latencies(library: Library, phase: str, split: Split) -> Latencies:
    drawn = list[tuple[str, int, Markup]]()
    for row in library.seconds(phase, split):
        title = row["scorer"] or "episode: engine and environment"
        svg = bar_chart(f"seconds, {title}", [("p50", row["p50"]), ("p95", row["p95"]), ("max", row["most"])], "s")
        if svg:
            drawn.append((title, row["n"], svg))
    return Latencies(phase, split, tuple(drawn))


def _tradeoffs(run: RecordedRun) -> Iterator[tuple[str, tuple[float, float]]]:
    """(phase, (retention, points gained)) of each phase after which both were measured at the same step."""
    mode = next((mode for mode in MODES if BASE in final_evaluations(run.evaluations, mode)), None)
    for phase, record in (final_evaluations(run.evaluations, mode) if mode else {}).items():
        kept = [row.retention for row in run.retention if (row.phase, row.step) == (phase, record.step) and row.retention is not None]
        if kept and BASE in record.against:
            yield phase, (min(kept), 100 * record.against[BASE].difference)


def _interval(row: RetentionRow) -> tuple[float, float, float]:
    assert row.retention is not None
    return row.retention, row.retention if row.low is None else row.low, row.retention if row.high is None else row.high
