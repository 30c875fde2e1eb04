"""Reads what a run left in its folder. A file that is not there yet reads as empty: the run has not come that far."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rollout.store.json_lines import read_json_lines
from ..rollout.store.own_files import check_all_own, own_file, read_whole
from ..rollout.store.records import (
    AlarmRow,
    EvaluationRecord,
    LedgerRow,
    Mode,
    RetentionRow,
    RollBackRow,
    Row,
    read_evaluations,
    read_ledger,
    read_retention,
    readable_rows,
)
from ..rollout.store.transcripts import Transcript

MODES: tuple[Mode, ...] = ("sampled", "greedy")
FOLDERS = ("transcripts", "episodes", "data", "checkpoints", "suites")
LARGEST = int(sys.float_info.max)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of metrics.jsonl. time: Unix seconds. Example: `MetricRow("rft", 3, 1.7e9, {"reward_mean": 0.5})`."""

    phase: str
    step: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run folder, all but its transcripts (`read_run_transcripts` streams those). unread: the first lines of `alarms.jsonl`
    and of `roll_backs.jsonl` that cannot be read, and why: the rest of a run can be shown without them. unread_others: how many more."""

    path: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    seeds: dict[str, Any]
    metrics: tuple[MetricRow, ...]
    evaluations: tuple[EvaluationRecord, ...]
    ledger: tuple[LedgerRow, ...]
    alarms: tuple[AlarmRow, ...] = ()
    retention: tuple[RetentionRow, ...] = ()
    roll_backs: tuple[RollBackRow, ...] = ()
    unread: tuple[str, ...] = ()
    unread_others: int = 0

    @property
    def name(self) -> str:
        return self.path.name


def read_run(path: Path) -> RecordedRun:
    """Raises ValueError when `path` is no run folder, or naming file and line of what cannot be read, alarms left aside (`unread`)."""
    path = check_run(path)
    alarms, unread, others = _readable(path, "alarms.jsonl", AlarmRow)
    roll_backs, more_unread, more_others = _readable(path, "roll_backs.jsonl", RollBackRow)
    versions = read_object(path, "versions.json")
    if not isinstance(versions.get("packages", {}), dict):
        raise ValueError(f"{path / 'versions.json'}: packages must be a JSON object")
    return RecordedRun(
        path,
        read_object(path, "config.json"),
        versions,
        read_object(path, "seeds.json"),
        tuple(read_metrics(path / "metrics.jsonl")),
        tuple(read_evaluations(file) if (file := own_file(path, "evaluations.jsonl")) else ()),
        tuple(read_ledger(file) if (file := own_file(path, "ledger.jsonl")) else ()),
        tuple(alarms),
        tuple(read_retention(file) if (file := own_file(path, "retention.jsonl")) else ()),
        tuple(roll_backs),
        (*unread, *more_unread),
        others + more_others,
    )


def _readable(run: Path, name: str, kind: type[Row]) -> tuple[list[Row], list[str], int]:
    file = own_file(run, name)
    if file is None:
        return [], [], 0
    rows, unread, others = readable_rows(file, kind)
    return rows, [problem.replace(str(file), name, 1) for problem in unread], others


def check_run(path: Path) -> Path:
    """The resolved folder of a run. Raises ValueError when it holds none, or a file that is shown of it is a link to somewhere else, or no
    file at all."""
    if not (path / "config.json").is_file():
        below = Path("runs") / path
        close = f"did you mean {below}?" if (below / "config.json").is_file() else "give a folder under runs/"
        raise ValueError(f"{path} is not a run folder (it has no config.json); {close}")
    home = path.resolve()
    for pattern in ("*.json*", *FOLDERS, "transcripts/*.jsonl", "episodes/*.parquet", "episodes/.index", "data/*", "data/*/*.json*"):
        check_all_own(home, home.glob(pattern))
    return home


def read_metrics(path: Path) -> Iterator[MetricRow]:
    """The rows of metrics.jsonl. Raises ValueError with file and line on a row without phase, step and time, or with text in it."""
    if own_file(path.parent, path.name) is None:
        return
    for where, row in read_json_lines(path):
        yield metric_row(where, row)


def metric_row(where: str, row: Mapping[str, Any]) -> MetricRow:
    """A row of metrics.jsonl as it was read. Raises ValueError, which begins with where it stands, as `read_metrics` does."""
    missing = [key for key in ("phase", "step", "time") if key not in row]
    if missing:
        raise ValueError(f"{where}: a row of metrics needs {missing[0]!r}")
    phase, step, time = str(row["phase"]), row["step"], row["time"]
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= 2**53:
        raise ValueError(f"{where}: 'step' must be a whole number from 0 to 2**53")
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time <= 2**53:
        raise ValueError(f"{where}: 'time' must be Unix seconds, a number from 0 to 2**53")
    metrics = {name: value for name, value in row.items() if name not in ("phase", "step", "time")}
    wrong = [name for name, value in metrics.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if wrong:
        raise ValueError(f"{where}: metric {wrong[0]!r} is {row[wrong[0]]!r}, not a number")
    large = [name for name, value in metrics.items() if abs(value) > LARGEST]  # 1e999 is read as infinity
    if large:
        raise ValueError(f"{where}: metric {large[0]!r} is larger than a float can be")
    return MetricRow(phase, step, float(time), {name: float(value) for name, value in metrics.items()})


def read_run_transcripts(path: Path) -> Iterator[Transcript]:
    """The transcripts of a run, one at a time, the earliest first. Raises ValueError naming the file, with the line of a bad row."""
    from ..rollout.store.recorded import recorded_transcripts  # needs pyarrow, and what else reads runs does not

    return recorded_transcripts(check_run(path))


def phases_of(rows: Iterable[MetricRow | EvaluationRecord | LedgerRow]) -> list[str]:
    """The phases in the order they first appear."""
    return list(dict.fromkeys(row.phase for row in rows))


def series_of(rows: Iterable[MetricRow], phase: str) -> dict[str, list[tuple[int, float]]]:
    """metric -> [(step, value)] of one phase, steps ascending; of a step taken again after a resume, the later row counts."""
    by_metric: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.phase == phase:
            for name, value in row.values.items():
                by_metric.setdefault(name, {})[row.step] = value
    return {name: sorted(values.items()) for name, values in by_metric.items()}


def series_rows(rows: Iterable[MetricRow], phase: str, steps: int) -> list[dict[str, float]]:
    """The metrics of each step of one phase up to `steps`, ascending; of a step taken again after a resume, the later row."""
    found = {row.step: row.values for row in rows if row.phase == phase and row.step <= steps}
    return [found[step] for step in sorted(found)]


def final_evaluations(records: Sequence[EvaluationRecord], mode: Mode) -> dict[str, EvaluationRecord]:
    """The last evaluation of each phase in one mode, in the order of the phases."""
    return {phase: last[-1] for phase in phases_of(records) if (last := [r for r in records if r.phase == phase and r.result.mode == mode])}


def final_ledger(rows: Sequence[LedgerRow]) -> dict[str, LedgerRow]:
    """The last row of each phase: counts are cumulative within a phase."""
    return {row.phase: row for row in rows}


def read_object(run: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a run, empty when it is not there. Raises ValueError naming the file when it holds anything else."""
    path = own_file(run, name)
    if path is None:
        return {}
    content = read_whole(path)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold a JSON object, not {type(data).__name__}")
    return data
