"""The alarms of a run for eyes: the latest first, none too long, and what the guards did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..rollout.store.records import MOST_UNREAD, AlarmRow
from .runs import RecordedRun
from .text import cut

MOST = 50
"""Alarms that are shown."""
LETTERS = 600
"""Of what a guard said, or of why a line cannot be read; names are cut far shorter."""
DONE = {"warn": "warned", "stop": "stopped"}


@dataclass(frozen=True, slots=True)
class ShownAlarm:
    """An alarm, each text cut to what a page bears. done: "warned", "stopped", "rolled back", "was to roll back" where the run did
    not, or what the file says."""

    phase: str
    step: str
    guard: str
    text: str
    done: str


@dataclass(frozen=True, slots=True)
class ShownAlarms:
    """The latest alarms, the last raised first. others: how many came before them. unread: why the first lines that cannot be read cannot;
    unread_others: how many more there are."""

    rows: tuple[ShownAlarm, ...]
    others: int
    unread: tuple[str, ...]
    unread_others: int

    def __bool__(self) -> bool:
        return bool(self.rows or self.unread)


def alarms_of(run: RecordedRun) -> ShownAlarms:
    """The alarms of a run, of which there may be none."""
    done = list(_done(run))[::-1]
    rows = tuple(
        ShownAlarm(cut(row.phase, 40), cut(str(row.step), 20), cut(row.guard, 40), cut(row.text, LETTERS), cut(what, 40))
        for row, what in done[:MOST]
    )
    unread = tuple(cut(problem, LETTERS) for problem in run.unread[:MOST_UNREAD])
    return ShownAlarms(rows, len(done) - len(rows), unread, len(run.unread) - len(unread) + run.unread_others)


def _done(run: RecordedRun) -> Iterator[tuple[AlarmRow, str]]:
    """Each alarm and what was done. One that asks for the way back does not get it where another stops the run, or it was gone too often;
    the same one may come again after the way back."""
    went = Counter((back.phase, back.step, guard) for back in run.roll_backs for guard in back.guards)
    for row in run.alarms:
        if row.action != "roll_back":
            yield row, DONE.get(row.action, row.action)
            continue
        went[row.phase, row.step, row.guard] -= 1
        yield row, "rolled back" if went[row.phase, row.step, row.guard] >= 0 else "was to roll back"
