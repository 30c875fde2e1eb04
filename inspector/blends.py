"""What each phase's blend amounted to, beside what was asked for: out of what a run laid out and measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .runs import RecordedRun, read_object, series_of


@dataclass(frozen=True, slots=True)
class BlendRow:
    """One source of a phase. asked: its share, of samples or of tokens as `by` says; samples, tokens: the shares it had, None where nothing
    was measured; rows and left_out: of its rows, None where tasks are made as they are needed."""

    phase: str
    source: str
    by: str
    asked: float
    samples: float | None
    tokens: float | None
    rows: int | None = None
    left_out: int | None = None


def blend_rows(run: RecordedRun) -> list[BlendRow]:
    """Every source of every phase that was blended. Raises ValueError naming the file that cannot be read."""
    return [*_supervised(run, "cpt"), *_supervised(run, "sft"), *_environments(run)]


def _supervised(run: RecordedRun, phase: str) -> Iterator[BlendRow]:
    file = run.path / "data" / phase / "blend.json"
    record = read_object(file)
    sources = record.get("sources", [])
    if not isinstance(sources, list) or len(sources) < 2:
        return
    series = series_of(run.metrics, phase)
    taught = {name: sum(value for _, value in points) for name, points in series.items() if name.startswith("blend_tokens/")}
    whole = sum(taught.values())
    for source in sources:
        try:
            name, asked = str(source["name"]), float(Fraction(source["asked"]))
            rows, left_out = int(source["rows"]), int(source["rejected"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{file}: a source of a blend cannot be read: {error}") from error
        points = series.get(f"blend/{name}", [])
        tokens = taught[f"blend_tokens/{name}"] / whole if whole and f"blend_tokens/{name}" in taught else None
        yield BlendRow(phase, name, str(record.get("by", "samples")), asked, points[-1][1] if points else None, tokens, rows, left_out)


def _environments(run: RecordedRun) -> Iterator[BlendRow]:
    table = run.config.get("rft")
    blended: list[Any] = list(table.get("blend") or ()) if isinstance(table, Mapping) else []
    if not blended:
        return
    asked = {
        str(one.get("name") or str(one.get("environment", "")).rpartition("/")[2]): float(one.get("percent", 0)) / 100 for one in blended
    }
    series = series_of(run.metrics, "rft")
    sampled = dict(series.get("groups_sampled", []))
    for name, share in {"own": 1 - sum(asked.values()), **asked}.items():
        points = series.get(f"blend/{name}", [])
        groups = sum(sampled.values())
        had = sum(value * sampled.get(step, 0.0) for step, value in points) / groups if groups else None
        yield BlendRow("rft", name, "tasks", share, had, None)
