"""How long a plan may take, by what earlier runs of the same model in the same environment took here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from burnish.inspector.runs import MetricRow, read_metrics, read_object
from burnish.recipe.resolve import ResolvedRun
from burnish.trainer.phases.registry import KINDS

LOOKED_AT = 20
"""Of the latest run folders, how many are looked at."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What an earlier run took. run: its folder.

    tokens_per_second: packed tokens, by supervised phase. seconds_per_episode: of a step of reinforcement, with learning, syncing and what
    was sampled again. episodes_per_second: while episodes are played. None and absent: the run came not that far.
    """

    run: Path
    tokens_per_second: Mapping[str, float]
    seconds_per_episode: float | None = None
    episodes_per_second: float | None = None


def earlier_rates(run: ResolvedRun, runs: Path) -> Rates | None:
    """The rates of the latest run below `runs` that played the same model in the same environment, on the same platform and with turns as
    long; None when there is none. A folder that cannot be read is no such run."""
    folders = sorted(runs.glob("*/config.json"), key=lambda file: file.lstat().st_mtime, reverse=True)
    for file in folders[:LOOKED_AT]:
        try:
            config = read_object(file.parent, file.name)
            rows = list(read_metrics(file.with_name("metrics.jsonl"))) if _alike(config, run.record) else []
            if rows:
                return _rates(file.parent, config, rows)
        except (OSError, ValueError, RecursionError, LookupError, TypeError, ArithmeticError):  # it may be anybody's
            continue
    return None


def _alike(config: Any, record: Mapping[str, Any]) -> bool:
    def what_decides(data: Mapping[str, Any]) -> Iterator[Any]:
        yield from (data.get(key) for key in ("model", "platform", "environment", "environment_args"))
        rollout = data.get("rollout")
        yield from (rollout.get(key) if isinstance(rollout, Mapping) else None for key in ("max_turns", "max_tokens_per_turn"))

    return isinstance(config, Mapping) and list(what_decides(config)) == list(what_decides(record))


def _rates(folder: Path, config: Mapping[str, Any], rows: Iterable[MetricRow]) -> Rates:
    by_phase: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        by_phase.setdefault(row.phase, []).append(row.values)
    tables = {table["name"]: table for table in _tables(config) if table.get("kind") == "rft"}
    played = [(tables[phase], row) for phase in list(by_phase) if phase in tables for row in by_phase.pop(phase)]
    tokens = {phase: sum(row["packed_tokens"] for row in done) / sum(row["seconds"] for row in done) for phase, done in by_phase.items()}
    if not played:
        return Rates(folder, tokens)
    per_episode = median(row["step_seconds"] / (table["groups_per_step"] * table["group_size"]) for table, row in played)
    return Rates(folder, tokens, per_episode, median(row["episodes_per_second"] for _, row in played))


def _tables(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The tables of the phases of a run's config, named."""
    for kind in KINDS:
        if config.get(kind) is not None:
            yield {"kind": kind, "name": kind, **config[kind]}
    yield from config.get("phases", ())
