"""What each phase's blend amounted to, beside what was asked for: out of what a run laid out and measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..rollout.store.records import read_share
from .runs import RecordedRun, read_object, series_of

PLAIN = ("cpt", "midtrain", "sft", "dpo", "rft")
"""Tables of a recipe without `[[phases]]`, in the order they run."""

EXAMPLES = ("blend.json", "asked", "rows", "samples")
TOKENS = "blend_tokens/"
PAIRS = ("pairs.json", "share", "pairs", "pairs")
"""What says what was laid out: the file, its keys of a source's share and of its rows, and what the shares are of."""


@dataclass(frozen=True, slots=True)
class BlendRow:
    """One source of a phase. asked: its share, of samples, pairs, tasks or tokens, as `by` says; samples, tokens: the shares it had, None
    where nothing was measured; rows and left_out: of its rows, None where tasks are made as they are needed."""

    phase: str
    source: str
    by: str
    asked: float
    samples: float | None
    tokens: float | None
    rows: int | None = None
    left_out: int | None = None


def blend_rows(run: RecordedRun) -> list[BlendRow]:
    """Every source of every phase that was blended, in the order of the phases, what was replayed beside reinforcement included.

    Raises ValueError naming the file that cannot be read.
    """
    rows = list[BlendRow]()
    for phase, kind, table in recorded_phases(run.config):
        if kind == "rft":
            rows += _environments(run, phase, table)
        rows += _laid_out(run, phase, kind)
    return rows


def recorded_phases(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, kind and table of each phase of a recorded config: those of `[[phases]]`, or the plain tables."""
    listed = config.get("phases")
    if isinstance(listed, list) and listed:
        for table in (table for table in listed if isinstance(table, Mapping)):
            kind = str(table.get("kind"))
            yield str(table.get("name") or kind), kind, table
    else:
        plain = ((kind, config.get(kind)) for kind in PLAIN)
        yield from ((kind, kind, one) for kind, one in plain if isinstance(one, Mapping))


def _laid_out(run: RecordedRun, phase: str, kind: str) -> Iterator[BlendRow]:
    """Of what a phase learns out of rows: pairs, or examples, which beside reinforcement are its replay."""
    if phase not in {folder.name for folder in run.path.glob("data/*")}:  # a phase may be called anything
        return
    beside, (name_of, share_key, rows_key, by) = kind == "rft", PAIRS if kind == "dpo" else EXAMPLES
    file = f"data/{phase}/{name_of}"
    record = read_object(run.path, file)
    sources = record.get("sources", [])
    if not isinstance(sources, list) or len(sources) < 2:
        return
    series = series_of(run.metrics, phase)
    taught = {} if beside else _tokens(series)
    whole = sum(taught.values())
    for source in sources:
        try:
            name, asked = str(source["name"]), float(read_share(source[share_key]))
            rows, left_out = _count(source[rows_key]), _count(source["rejected"])
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
            raise ValueError(f"{run.path / file}: a source of a blend cannot be read: {error}") from error
        points = series.get(f"{'replay_' if beside else ''}blend/{name}", [])
        tokens = taught[name] / whole if whole and name in taught else None
        shown = f"{phase} replay" if beside else phase
        yield BlendRow(shown, name, str(record.get("by", by)), asked, points[-1][1] if points else None, tokens, rows, left_out)


def _tokens(series: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, float]:
    """The tokens of each source that a phase trained, by the source's name."""
    named = {name: points for name, points in series.items() if name.startswith(TOKENS)}
    return {name.removeprefix(TOKENS): sum(value for _, value in points) for name, points in named.items()}


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.40} is no number of rows")
    return value


def _environments(run: RecordedRun, phase: str, table: Mapping[str, Any]) -> Iterator[BlendRow]:
    blended = table.get("blend") or []
    if not blended:
        return
    try:
        if not isinstance(blended, list) or not all(isinstance(one, Mapping) for one in blended):
            raise TypeError("a blend is a list of tables")
        asked = {
            str(one.get("name") or str(one.get("environment", "")).rpartition("/")[2]): float(one.get("percent", 0)) / 100
            for one in blended
        }
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{run.path / 'config.json'}: the blend of {phase} cannot be read: {error}") from error
    series = series_of(run.metrics, phase)
    sampled = dict(series.get("groups_sampled", []))
    groups, had = sum(sampled.values()), dict[str, float]()
    for name in asked if groups else ():
        had[name] = sum(value * sampled.get(step, 0.0) for step, value in series.get(f"blend/{name}", [])) / groups
    if groups:  # what the others left: a run may have recorded no share of its own where nothing else was sampled
        had["own"] = max(0.0, 1 - sum(had.values()))
    taught = _tokens(series)
    whole = sum(taught.values())
    for name, share in {"own": 1 - sum(asked.values()), **asked}.items():
        tokens = taught[name] / whole if whole and name in taught else None
        yield BlendRow(phase, name, "tasks", share, had.get(name), tokens)
