"""`burnish runs watch`: where a run is, on one screen, out of what lies in its folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table
from rich.text import Text

from ..rollout.store.held_out import SECONDS, TASKS, success_of
from .account import times_of
from .alarms import alarms_of
from .blends import recorded_phases
from .effort import step_seconds
from .held_out import held_out_series
from .kept import has_share
from .runs import MetricRow, RecordedRun, final_ledger, series_of
from .text import cut, number, percent, printable

BARS = "▁▂▃▄▅▆▇█"
POINTS = 40
"""Steps of a sparkline, the latest."""
PACE_OVER = 10
"""Steps that the time left follows from, the latest of the phase."""
LONGEST_S = 1e9
"""Seconds that are believed; a file may say anything."""
MOST_STEPS = 2**53
"""Of a phase that are believed, as of the rows of metrics."""
ALARMS = 3
LETTERS = 200
"""Of a line that a file may have written."""

Rewards = Sequence[tuple[int, float, float, float]]
"""As `Library.rewards` gives them: step, mean, and the interval of the mean."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at. run: its folder as it was last read. rewards: of the phase of its last step. live: whether it goes on. now: Unix
    seconds."""

    run: RecordedRun
    rewards: Rewards
    live: bool
    now: float

    @property
    def last(self) -> MetricRow | None:
        """The step that was written last."""
        return self.run.metrics[-1] if self.run.metrics else None


def screen(seen: Watched) -> Table:
    """What is known, for a terminal of any width. Nothing in it is markup, and nothing steers the terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _shown(seen):
        table.add_row(Text(name), Text(value))
    return table


def lines(seen: Watched) -> list[str]:
    """The same for a pipe, a line each."""
    return [f"{name:<10} {value}" for name, value in _shown(seen)]


def _shown(seen: Watched) -> Iterator[tuple[str, str]]:
    for name, value in facts(seen):
        yield name, printable(cut(value, LETTERS)).replace("\n", "\\n")


def facts(seen: Watched) -> Iterator[tuple[str, str]]:
    """What is known, by its name: a run that has not come so far has fewer facts."""
    run, last = seen.run, seen.last
    ended = "has ended" if os.path.isfile(run.path / "report.html") else "no process is seen to drive it"
    yield "run", f"{run.name}, {'under way' if seen.live else ended}"
    if last is None:
        yield "step", "none yet"
    else:
        yield from _steps(seen, last)
        yield from _curves(seen, last)
        yield from _failures(run, last)
    for record in run.evaluations[-1:]:
        r = record.result
        interval = f"{percent(r.success_low)} to {percent(r.success_high)}"
        yield "evaluated", f"after {record.phase} {record.step}, {r.mode}: {percent(r.success)} ({interval}), n = {len(r.task_success)}"
    yield from _alarms(run)
    if last is not None:
        yield from _times(run, last.phase)


def sparkline(values: Sequence[float]) -> str:
    """A letter for each of the last `POINTS` values, from the least to the most of them; those that are not finite are left out.

    Example: `sparkline([0.0, 0.5, 1.0]) == "▁▅█"`.
    """
    shown = [value for value in values[-POINTS:] if math.isfinite(value)]
    if not shown:
        return ""
    low = min(shown)
    spread = max(shown) / 2 - low / 2  # halves: the difference of two floats may be none
    return "".join(BARS[round((value / 2 - low / 2) / spread * (len(BARS) - 1)) if spread else 0] for value in shown)


def duration(seconds: float) -> str:
    """Example: "3 min"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _steps(seen: Watched, last: MetricRow) -> Iterator[tuple[str, str]]:
    """How far the phase is, how long the rest of it takes, and what is on its way."""
    phases = {name: table.get("steps") for name, _, table in recorded_phases(seen.run.config)}
    total, names = phases.get(last.phase), list(phases)
    known = isinstance(total, int) and not isinstance(total, bool) and last.step <= total <= MOST_STEPS
    left = total - last.step if known and isinstance(total, int) else 0
    later = names[names.index(last.phase) + 1 :] if last.phase in names else []
    then = f", then {', '.join(later)}" if later else ""
    yield "step", f"{last.phase} {last.step}{f' of {total}' if known else ''}{then}"
    pace = _pace(seen.run, last.phase)
    if seen.live and left and pace is not None:
        yield "time left", f"about {duration(left * pace)} of {last.phase}, at {pace:.3g} s a step"
    if seen.live:
        yield "in flight", f"{_under_way(seen.run, last, left)}, written {duration(max(0.0, min(seen.now - last.time, LONGEST_S)))} ago"


def _under_way(run: RecordedRun, last: MetricRow, left: int) -> str:
    ledger = final_ledger(run.ledger).get(last.phase)
    carried = f"{ledger.carried:,} attempts on their way after step {ledger.step}" if ledger is not None and ledger.carried else ""
    step = f"{last.phase} {last.step + 1}" if left else f"what comes after {last.phase} {last.step}"
    return ", ".join(part for part in (step, carried) if part)


def _pace(run: RecordedRun, phase: str) -> float | None:
    """Seconds of a step: what the last ones say that they took, with their part of the measurements so far, or else, from when they were
    written."""
    rows = [row for row in run.metrics if row.phase == phase][-PACE_OVER - 1 :]
    seconds = step_seconds(run)
    took = [seconds[phase, row.step] for row in rows[-PACE_OVER:] if (phase, row.step) in seconds]
    steps = rows[-1].step - rows[0].step if rows else 0
    pace = fmean(took) + _measuring(run, phase) if took else (rows[-1].time - rows[0].time) / steps if steps > 0 else 0.0
    return pace if 0 < pace <= LONGEST_S else None


def _measuring(run: RecordedRun, phase: str) -> float:
    """Seconds that measurements on held-out tasks took for each step of a phase so far."""
    took = {row.step: row.values.get(SECONDS, 0.0) for row in run.metrics if row.phase == phase}
    return sum(seconds for seconds in took.values() if 0 <= seconds <= LONGEST_S) / len(took)


def _curves(seen: Watched, last: MetricRow) -> Iterator[tuple[str, str]]:
    """Sparklines, each with its last value."""
    series = series_of(seen.run.metrics, last.phase)
    counted = f" (n = {last.values['rewarded']:.0f})" if "rewarded" in last.values else ""
    of = ", of those that are stored" if has_share(seen.run.config) else ""
    interval = next((f" ({number(low)} to {number(high)}{of})" for step, _, low, high in reversed(seen.rewards) if step == last.step), "")
    for name, metric, more in (("reward", "reward_mean", interval), ("success", "success", counted), ("loss", "loss", "")):
        values = [value for _, value in series.get(metric, ())]
        if values and metric in last.values:
            yield name, f"{sparkline(values)} {number(last.values[metric])}{more}"
        if metric == "success":
            line = held_out_line(seen.run, last.phase)
            if line:
                yield "held out", line


def held_out_line(run: RecordedRun, phase: str) -> str:
    """Success on held-out tasks in the course of a phase: its curve, and the last of it; "" where it was not measured.

    Example: "▁▄█ 62.0% (48.2% to 74.1%), n = 50, after step 60".
    """
    measured = held_out_series(run, phase, success_of)
    if measured is None:
        return ""
    step, share, low, high = measured.points[-1]
    tasks = next(row.values[TASKS] for row in reversed(run.metrics) if (row.phase, row.step) == (phase, step))
    curve = sparkline([point[1] for point in measured.points])
    return f"{curve} {percent(share)} ({percent(low)} to {percent(high)}), n = {tasks:.0f}, after step {step}"


def _failures(run: RecordedRun, last: MetricRow) -> Iterator[tuple[str, str]]:
    if "failed" in last.values and "episodes" in last.values:
        ledger = final_ledger(run.ledger).get(last.phase)
        ended = {**ledger.masked, **ledger.dropped} if ledger is not None else {}
        so_far = ", ".join(f"{count:,} {kind}" for kind, count in ended.items())
        so_far = f"; since the phase began, not trained on: {so_far}" if so_far else ""
        of_step = f"{last.values['failed']:.0f} of {last.values['episodes']:.0f} in step {last.step}"
        yield "failed", of_step + so_far


def _alarms(run: RecordedRun) -> Iterator[tuple[str, str]]:
    shown = alarms_of(run)
    for row in shown.rows[:ALARMS]:
        yield "alarm", f"{row.phase} {row.step} {row.guard}: {row.text} ({row.done})"
    more = len(shown.rows) - ALARMS + shown.others
    if more > 0:
        yield "alarms", f"{more:,} more before these"
    for problem in shown.unread[:1]:
        yield "alarms", f"a line cannot be read: {problem}"


def _times(run: RecordedRun, phase: str) -> Iterator[tuple[str, str]]:
    time = times_of(run).get(phase)
    if time is not None:
        busy = ", ".join(f"{part.title.lower()} {part.busy:.0%}" for part in time.parts)
        yield "busy", f"{busy}, in the last {time.steps} steps"
        yield "", time.advice
