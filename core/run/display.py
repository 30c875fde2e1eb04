"""What a run shows on the terminal: one line per event, a progress bar with rate and time left for every long step."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from burnish.envs.failures import Failure
from burnish.envs.types import Episode
from burnish.inspector.screen import Screen
from burnish.inspector.text import printable
from burnish.rollout.store.records import Comparison, EvaluationResult

PLAIN_EVERY_S = 15.0
"""Seconds between lines where there is no terminal to draw a bar on."""
PLAIN_WIDTH = 160
"""Columns of tables where there is no terminal to fit them to: a log's reader scrolls, or has a wide window."""
RATE_OVER_S = 30.0
"""Seconds that a rate looks back on, or the last step where that took longer: a slow start is soon forgotten."""


def new_console(stderr: bool = False) -> Console:
    """The console of a command. Its tables are as wide as the terminal, as `COLUMNS` says, or else `PLAIN_WIDTH`. stderr: print there."""
    fits = (sys.stderr if stderr else sys.stdout).isatty() or os.environ.get("COLUMNS")
    return Screen(stderr=stderr, width=None if fits else PLAIN_WIDTH)


def say(console: Console, text: str) -> None:
    """One line, nothing in it interpreted as markup or by the terminal, and broken by nobody: a log has it whole."""
    console.print(escape(printable(text)), highlight=False, soft_wrap=True)


class StepBar:
    """A progress bar over steps; on a pipe or in a log file, a line now and then instead.

    clock: seconds that only grow. Example: `with StepBar(console, "RFT", 60) as bar: bar.advance("reward 0.71")`.
    """

    def __init__(self, console: Console, title: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._title, self._total, self._done, self._clock = console, title, total, done, clock
        self._started = self._said = clock()
        self._marks = deque([(self._started, done)])
        columns = (
            TextColumn("[bold]{task.description:<22}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total, completed=done, rate="", note="")

    def advance(self, note: str) -> None:
        """One step is done."""
        self._done += 1
        self._marks.append((self._clock(), self._done))
        while len(self._marks) > 2 and self._marks[-1][0] - self._marks[1][0] >= RATE_OVER_S:
            self._marks.popleft()
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
        """The rate of late, and how long the rest takes at it."""
        (began, before), (now, done) = self._marks[0], self._marks[-1]
        per_step = max(now - began, 1e-9) / (done - before)
        rate = f"{1 / per_step:.1f}/s" if per_step <= 1 else f"{per_step:.1f} s/step"
        left = self._total - self._done
        return f"{rate}  {_clock_time(left * per_step)} left" if left > 0 else rate

    def _say_plainly(self, note: str) -> None:
        now = self._clock()
        if not self._console.is_terminal and (self._done == self._total or now - self._said >= PLAIN_EVERY_S):
            self._said = now
            say(self._console, f"{self._title} {self._done}/{self._total}  {now - self._started:.0f} s  {self._rate()}  {note}")


def _clock_time(seconds: float) -> str:
    """Example: 3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def evaluation_line(phase: str, result: EvaluationResult, against: Mapping[str, Comparison]) -> str:
    """One evaluation on one line: success with its interval and n, beside the best constant policy; recall, turns, cost, and the change
    since the phase before."""
    n = len(result.task_success)
    interval = f"[{result.success_low:.0%}, {result.success_high:.0%}]"
    parts = [f"after {phase} ({result.mode}, n = {n}): success {result.success:.1%} {interval}"]
    if result.best_constant is not None:
        parts.append(f"best constant policy {result.best_constant.success:.1%} ({result.best_constant.label})")
    if result.macro_recall is not None:
        parts.append(f"macro-recall {result.macro_recall:.1%} (n = {sum(sum(row.values()) for row in result.confusion.values())})")
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


def held_out_line(phase: str, step: int, result: EvaluationResult) -> str:
    """One measurement in the course of a phase on one line: success with its interval and n, and the mean reward."""
    interval = f"[{result.success_low:.0%}, {result.success_high:.0%}]"
    said = f"{phase} step {step}, held out ({result.mode}, n = {len(result.task_success)}): success {result.success:.1%} {interval}"
    failed = ", ".join(f"{count} {kind}" for kind, count in result.failures.items())
    return f"{said}, reward {result.reward:.2f}" + (f", failed: {failed}" if failed else "")


def failures_line(step: int, episodes: Iterable[Episode]) -> str | None:
    """What a step of reinforcement says of episodes that failed, None when none did: an outage shows in the step in which it happens."""
    outcomes = [episode.outcome for episode in episodes]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not failed:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(failure.kind.value for failure in failed).most_common())
    return f"step {step}: {len(failed)} of {len(outcomes)} episodes failed and teach nothing: {kinds}; the last one: {failed[-1].line}"


def constant_line(result: EvaluationResult) -> str | None:
    """A warning where a success may be none: the policy is no better than the best one that always says the same."""
    best = result.best_constant
    if best is None or result.success > best.success:
        return None
    return (
        f"careful: success {result.success:.1%} is not above the {best.success:.1%} of a policy that always says {best.label!r}; "
        "see the recall per label in the report"
    )
