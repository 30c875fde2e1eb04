"""What `burnish env …` and `burnish rewards …` do."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burnish.cli.arguments import parse_arguments
from burnish.cli.found import Found
from burnish.cli.models import table_lines
from burnish.envs.callables import is_async, written
from burnish.envs.checks.environment import Report, render
from burnish.envs.checks.environment import check_environment as run_checks
from burnish.envs.contract import ENVS
from burnish.envs.registry import Listing, load_plugin
from burnish.inspector.text import printable
from burnish.rewards.checks.reward import check_reward as check_plugin
from burnish.rewards.checks.trial import TriedRow, read_episodes, try_rows
from burnish.rewards.options import describe_options, signature_text
from burnish.rewards.plugin import REWARDS, find_plugin, make_group_scorer, make_scorer
from burnish.rewards.types import RewardInput, Score

MOST_NAMED = 10
"""Rows with one and the same fault that are named, after the first."""
LIMITS = ("timeout_s", "max_concurrent", "cache", "isolation", "min_members", "max_batch", "max_wait_s")
"""Of a reward; which of them have an effect is its level's."""


def environments(plugins: Sequence[Path]) -> Found:
    """Every environment and where it comes from."""
    _load(plugins)
    return _listing(ENVS.list())


def rewards(plugins: Sequence[Path]) -> Found:
    """Every reward and where it comes from. Level and description stand in `burnish rewards show`: listing imports nothing."""
    _load(plugins)
    return _listing(REWARDS.list(), "burnish rewards show ID says what one is called with, and its options")


def check_environment(id: str, args: Sequence[str], plugins: Sequence[Path]) -> list[Report]:
    """The report of the conformance checks."""
    _load(plugins)
    return [run_checks(id, parse_arguments(args))]


def print_reports(reports: Sequence[Report], as_json: bool) -> None:
    """Print reports of conformance checks. Raises ValueError naming what does not keep the contract, with the reports unless JSON on stdout
    has them."""
    text = printable("\n".join(map(render, reports)))
    failed = [report.subject for report in reports if report.failed]
    if as_json or not failed:
        Found([text], [report.to_row() for report in reports]).print(as_json)
    if failed:
        raise ValueError(f"{', '.join(failed)} does not keep the contract" + ("" if as_json else f"\n{text}"))


def show_reward(id: str, plugins: Sequence[Path]) -> Found:
    """What a reward is called with, its options, its limits, and what its author says about it."""
    _load(plugins)
    plugin = find_plugin(id)
    kind = "async" if is_async(plugin.function) else "sync"
    options = describe_options(f"reward {plugin.id!r}", plugin.function, plugin.first_parameter)
    rows = [(option.name, option.type, "required" if option.default is None else option.default, option.description) for option in options]
    limits = [f"timeout_s {plugin.timeout_s:g}", f"max_concurrent {plugin.max_concurrent}", f"cache {plugin.cache or 'off'}"]
    limits += [f"isolation {plugin.isolation}"] if plugin.isolation == "process" else []
    limits += [f"min_members {plugin.min_members}"] if plugin.level == "group" else []
    limits += [f"max_batch {plugin.max_batch}", f"max_wait_s {plugin.max_wait_s:g}"] if plugin.level == "batch" else []
    source = next(row.place for row in REWARDS.list() if row.id == id)
    lines = [
        f"{id}  (level {plugin.level}, {kind}, from {source})",
        f"  {written(plugin.function).__name__}{signature_text(plugin.function)}",
        f"  limits: {', '.join(limits)}",
        *(f"  {line}" for line in (table_lines(("option", "type", "default", ""), rows) if rows else ["no options"])),
        *(f"  {line}".rstrip() for line in ("", *plugin.doc.splitlines()) if plugin.doc),
    ]
    data: dict[str, Any] = {"id": id, "source": source, "level": plugin.level, "calling": kind}
    data |= {
        "function": written(plugin.function).__name__,
        "signature": signature_text(plugin.function),
        "options": [asdict(option) for option in options],
        "doc": plugin.doc,
    }
    return Found(lines, data | {name: getattr(plugin, name) for name in LIMITS})


def check_reward(id: str, args: Sequence[str], plugins: Sequence[Path], sample: Path | None) -> list[Report]:
    """The report of the conformance checks. Raises ValueError when a row of `sample` is unfit."""
    _load(plugins)
    rows = read_episodes(sample, find_plugin(id).level == "group") if sample is not None else []
    bad = [f"{where}: {row}" for where, row in rows if isinstance(row, str)]
    if bad:
        raise ValueError("\n".join(bad))
    return [check_plugin(id, parse_arguments(args), [row for _, row in rows if isinstance(row, RewardInput)])]


def try_reward(id: str, file: Path, args: Sequence[str], plugins: Sequence[Path], out: Path | None) -> tuple[Found, bool]:
    """Score every row of `file`: a table with mean, min and max, and whether any row failed. out: where to write one row for each.

    Raises ValueError when the reward, an option or the file is unfit; what is wrong with single rows is in the table.
    """
    _load(plugins)
    compared = find_plugin(id).level == "group"
    make = make_group_scorer if compared else make_scorer
    scorer = make(id, params=parse_arguments(args))
    if out is not None and out.resolve() == file.resolve():
        raise ValueError(f"--out {out} would overwrite the file that is read; write to another")
    trials = asyncio.run(try_rows(scorer, read_episodes(file, compared)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(trial.to_row(), allow_nan=False) + "\n" for trial in trials))
    return Found(_trial_lines(trials, scorer.name), [trial.to_row() for trial in trials]), any(trial.failed for trial in trials)


def _trial_lines(trials: Sequence[TriedRow], name: str) -> list[str]:
    scores = [(trial, trial.result) for trial in trials if isinstance(trial.result, Score)]
    parts = list(dict.fromkeys(part for _, score in scores for part in score.parts))
    # + 0.0: a negative zero reads as zero
    rows = [
        (t.where, _cell(t.id), *(f"{n + 0.0:g}" if n is not None else "" for n in (s.value, *map(s.parts.get, parts)))) for t, s in scores
    ]
    lines = table_lines(("row", "id", name, *map(_cell, parts)), rows) if rows else []
    if scores:
        values = [score.value + 0.0 for _, score in scores]
        lines.append(f"{len(values)} scored: mean {math.fsum(values) / len(values):g}, min {min(values):g}, max {max(values):g}")
    failed = [trial for trial in trials if trial.failed]
    lines += [f"{len(failed)} failed:"] if failed else []
    alike: dict[str, list[TriedRow]] = {}
    for trial in failed:
        alike.setdefault(_fault(trial), []).append(trial)
    for trial, *others in alike.values():
        named = f"{trial.where} ({_cell(trial.id)})" if trial.id else trial.where
        first, *rest = [printable(line) for line in str(trial.result).splitlines()]
        lines += [f"  {named}: {first}", *(f"    {line}" for line in rest)]
        if others:
            places = [other.where for other in others]
            more = f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
            lines.append(f"    the same in {len(places)} more: {', '.join(places[:MOST_NAMED])}{more}")
    return lines


def _fault(trial: TriedRow) -> str:
    """What is wrong with a row, without the name of its task."""
    return re.sub(r"(?<=: )task \S+: ", "", str(trial.result), count=1)


def _cell(text: str) -> str:
    return printable(text).replace("\n", "\\n")[:80]


def _load(plugins: Sequence[Path]) -> None:
    for plugin in plugins:
        load_plugin(plugin)


def _listing(rows: Sequence[Listing], *more: str) -> Found:
    lines = table_lines(("id", "from"), [(row.id, row.place) for row in rows])
    return Found([*lines, *more], [{"id": row.id, "source": row.place} for row in rows])
