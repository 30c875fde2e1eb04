"""What a run shows on the terminal: one line per event, a progress bar with rate and ETA for every long step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from burnish.inspector.text import printable
from burnish.rollout.store.records import Comparison, EvaluationResult

PLAIN_EVERY_S = 15.0
"""Seconds between lines where there is no terminal to draw a bar on."""


def say(console: Console, text: str) -> None:
    """One line, nothing in it interpreted as markup or by the terminal."""
    console.print(escape(printable(text)), highlight=False)


class StepBar:
    """A progress bar over steps; on a pipe or in a log file, a line now and then instead.

    Example: `with StepBar(console, "RFT", 60) as bar: bar.advance("reward 0.71")`.
    """

    def __init__(self, console: Console, title: str, total: int, done: int = 0) -> None:
        self._console, self._title, self._total, self._done = console, title, total, done
        self._first, self._started, self._said = done, time.monotonic(), time.monotonic()
        columns = (
            TextColumn("[bold]{task.description:<22}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", note="")

    def advance(self, note: str) -> None:
        """One step is done."""
        self._done += 1
        self._progress.update(self._task, completed=self._done, rate=self._rate(), note=escape(printable(note)))
        self._say_plainly(note)

    def tick(self, note: str) -> None:
        """Something happened within a step."""
        self._progress.update(self._task, note=escape(printable(note)))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _rate(self) -> str:
        per_second = (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)
        return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s/step"

    def _say_plainly(self, note: str) -> None:
        now = time.monotonic()
        if not self._console.is_terminal and (self._done == self._total or now - self._said >= PLAIN_EVERY_S):
            self._said = now
            say(self._console, f"{self._title} {self._done}/{self._total}  {now - self._started:.0f} s  {self._rate()}  {note}")


def evaluation_line(phase: str, result: EvaluationResult, against: Mapping[str, Comparison]) -> str:
    """One evaluation on one line: success with its interval and n, beside the best constant policy; recall, turns, cost, and the change
    since the phase before."""
    n = len(result.task_success)
    interval = f"[{result.success_low:.0%}, {result.success_high:.0%}]"
    parts = [f"after {phase} ({result.mode}, n = {n}): success {result.success:.1%} {interval}"]
    if result.best_constant is not None:
        parts.append(f"best constant policy {result.best_constant.success:.1%} ({result.best_constant.label})")
    if result.macro_recall is not None:
        parts.append(f"macro-recall {result.macro_recall:.1%}")
    parts.append(f"turns {result.turns:.1f}")
    if result.cost is not None:
        parts.append(f"cost {result.cost:.2f}")
    if against:
        earlier, gain = list(against.items())[-1]
        parts.append(f"{gain.difference:+.1%} against {earlier} ({gain.significance}, n = {gain.n})")
    elif n < 2:
        parts.append("one task compares nothing")
    if result.failures:
        parts.append("failed: " + ", ".join(f"{count} {kind}" for kind, count in result.failures.items()))
    return ", ".join(parts)
