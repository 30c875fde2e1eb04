"""How far the runs of a list came and what they reached, without their whole metrics: a folder may hold a thousand runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ...envs.rows import json_object
from ...rollout.store.own_files import open_file, own_file
from ...rollout.store.records import read_evaluations
from ..alarms import LETTERS
from ..report import first_and_last
from ..runs import metric_row
from ..text import cut
from .runs import RunLine

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
LAST_BYTES = 64 << 10
"""Of the metrics, in which their last row is."""
MOST_BYTES = 4 << 20
"""Of evaluations that are read for a list."""
Stamp = tuple[int, int] | None
"""When a file was written, in nanoseconds, and its bytes; None of one that is not there."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """at: phase and step of the latest row of the metrics, None before any. reward: mean total of that step, None where it has none.
    success: on held-out tasks, at the first and the latest evaluation as `first_and_last` has them. tasks: how many the latest was of.
    problem: why no more can be said, "" where nothing is amiss.

    Example: `RunProgress(("rft", 3), 0.5, (0.25, 0.75), 64)`.
    """

    at: tuple[str, int] | None = None
    reward: float | None = None
    success: tuple[float, ...] = ()
    tasks: int = 0
    problem: str = ""


def progress_of(lines: Iterable[RunLine]) -> dict[str, RunProgress]:
    """By the names of some runs. What stays as it is is read once."""
    return {line.name: _progress(line.path) for line in lines}


def _progress(run: Path) -> RunProgress:
    found = RunProgress()
    try:
        at, reward = _last_step(run, _stamp(run / METRICS))
        found = RunProgress(at, reward)
        success, tasks = _success(run, _stamp(run / EVALUATIONS))
        return replace(found, success=success, tasks=tasks)
    except (OSError, ValueError) as error:
        return replace(found, problem=cut(str(error).replace(f"{run}/", ""), LETTERS))


def _stamp(file: Path) -> Stamp:
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4096)
def _last_step(run: Path, stamp: Stamp) -> tuple[tuple[str, int] | None, float | None]:
    """Phase and step of the last row, and its reward; nothing where no row ends in the last `LAST_BYTES`, too."""
    file = own_file(run, METRICS) if stamp else None
    if file is None:
        return None, None
    with open_file(file) as stream:
        start = stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_BYTES))
        whole = stream.read(LAST_BYTES).rpartition(b"\n")[0]
    before, _, line = whole.strip().rpartition(b"\n")
    if not line or (start and not before):
        return None, None
    last = metric_row(METRICS, json_object(line))
    return (last.phase, last.step), last.values.get("reward_mean")


@lru_cache(maxsize=4096)
def _success(run: Path, stamp: Stamp) -> tuple[tuple[float, ...], int]:
    file = own_file(run, EVALUATIONS) if stamp else None
    if file is None or stamp is None:
        return (), 0
    if stamp[1] > MOST_BYTES:
        raise ValueError(f"{EVALUATIONS} is larger than {MOST_BYTES >> 20} MiB; the run's page has it")
    records = first_and_last(read_evaluations(file))
    return tuple(one.result.success for one in records), len(records[-1].result.task_success) if records else 0
