"""What `burnish env …` and `burnish rewards …` do."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from burnish.cli.arguments import parse_arguments
from burnish.cli.models import table_lines
from burnish.envs.callables import is_async, written
from burnish.envs.checks.environment import check_environment as run_checks
from burnish.envs.checks.environment import render
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


def environment_lines(plugins: Sequence[Path]) -> list[str]:
    _load(plugins)
    return _listing(ENVS.list())


def reward_lines(plugins: Sequence[Path]) -> list[str]:
    """Every reward and where it comes from. Level and description stand in `burnish rewards show`: listing imports nothing."""
    _load(plugins)
    return [*_listing(REWARDS.list()), "burnish rewards show ID says what one is called with, and its options"]


def check_environment(id: str, args: Sequence[str], plugins: Sequence[Path]) -> str:
    """The report of the conformance checks. Raises ValueError holding it when one failed."""
    _load(plugins)
    report = run_checks(id, parse_arguments(args))
    if report.failed:
        raise ValueError(f"environment {id} does not keep the contract\n{render(report)}")
    return render(report)


def show_reward(id: str, plugins: Sequence[Path]) -> str:
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
    return "\n".join(lines)


def check_reward(id: str, args: Sequence[str], plugins: Sequence[Path], sample: Path | None) -> str:
    """The report of the conformance checks. Raises ValueError holding it when one failed, or when a row of `sample` is unfit."""
    _load(plugins)
    rows = read_episodes(sample, find_plugin(id).level == "group") if sample is not None else []
    bad = [f"{where}: {row}" for where, row in rows if isinstance(row, str)]
    if bad:
        raise ValueError("\n".join(bad))
    report = check_plugin(id, parse_arguments(args), [row for _, row in rows if isinstance(row, RewardInput)])
    if report.failed:
        raise ValueError(f"reward {id} does not keep the contract\n{render(report)}")
    return render(report)


def try_reward(id: str, file: Path, args: Sequence[str], plugins: Sequence[Path], out: Path | None) -> tuple[str, bool]:
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
    return "\n".join(_trial_lines(trials, scorer.name)), any(trial.failed for trial in trials)


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


def _listing(rows: Sequence[Listing]) -> list[str]:
    return table_lines(("id", "from"), [(row.id, row.place) for row in rows])
