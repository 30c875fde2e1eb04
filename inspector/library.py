"""The stored episodes of a run, asked with SQL: lists that are filtered, sorted and searched, and single episodes with their tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import duckdb

from ..rollout.store.episodes import text
from ..rollout.store.moments import moments

Order = Literal["latest", "worst", "best", "longest", "slowest"]
ORDERS: Mapping[Order, str] = {
    "latest": "step DESC, episode",
    "worst": "reward ASC NULLS LAST, step DESC, episode",
    "best": "reward DESC NULLS LAST, step DESC, episode",
    "longest": "sampled_tokens DESC, step DESC, episode",
    "slowest": "seconds DESC, step DESC, episode",
}
assert set(ORDERS) == set(get_args(Order))
LISTED = (
    "phase, step, split, mode, episode, task, sample, reward, failure, culprit, truncation, labels, sampled_tokens, context_tokens, "
    "seconds, oldest_version, newest_version, len(turns) AS turns, advantages, mask"
)
Z_95 = 1.959964
"""The normal distribution's quantile of a two-sided 95 % interval."""
_FORM = (
    r'\{"role":"\w+","content":|,"tool_calls":|\{"id":"[^"]*","type":"function","function":\{"name":'
    r'|,"arguments":|,"tool_call_id":"[^"]*"|,"name":'
)
"""What of stored messages is form and was not said. A quote inside a text has a backslash before it, so no text holds any of it."""
SAID = (
    "CASE WHEN contains(lower(messages), lower(?)) "
    f"THEN contains(lower(regexp_replace(messages, '{_FORM}', '', 'g')), lower(?)) ELSE false END"
)
"""Whether a conversation holds a text, given as JSON writes it, twice: only what may hold it is freed of its form."""
LARGEST_REWARD = 1e100
"""Of larger ones no deviation can be told: a float does not hold their squares."""
EXACT = ("phase", "split", "mode", "task", "failure", "culprit", "truncation", "engine")
"""Columns that a list is narrowed by, each to one value."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which episodes to list. exact: column -> its value, of `EXACT`. step: of training; None for all. failed: only those that failed, or
    only those that did not. text: that the conversation holds, in any case. most: how many, from number `first` on.

    Example: `Wanted({"phase": "rft"}, step=12, order="worst")`.
    """

    exact: Mapping[str, str] = field(default_factory=dict)
    step: int | None = None
    failed: bool | None = None
    text: str = ""
    order: Order = "latest"
    first: int = 0
    most: int = 50


class Library:
    """The episodes in one folder. Every question reads the files that are there now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Nothing is loaded or fetched: what reads Parquet is built in.
        self._db = duckdb.connect(
            config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "allow_community_extensions": "false"}
        )

    def count(self, wanted: Wanted) -> int:
        """How many there are of those, `first` and `most` aside."""
        where, values = _where(wanted)
        found = self._ask(f"SELECT count(*) AS n FROM episodes {where}", values)
        return int(found[0]["n"]) if found else 0

    def listed(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Episodes without their messages and tokens: the columns of `LISTED`."""
        where, values = _where(wanted)
        question = f"SELECT {LISTED} FROM episodes {where} ORDER BY {ORDERS[wanted.order]} LIMIT ? OFFSET ?"
        return [_plain(row) for row in self._ask(question, [*values, wanted.most, wanted.first])]

    def choices(self) -> dict[str, list[Any]]:
        """The values there are of what can be chosen: phase, step, split, mode, failure, truncation."""
        found = {}
        for name in ("phase", "step", "split", "mode", "failure", "truncation"):
            rows = self._ask(f"SELECT DISTINCT {name} AS value FROM episodes WHERE {name} IS NOT NULL ORDER BY value", [])
            found[name] = [row["value"] for row in rows]
        return found

    def one(self, phase: str, step: int, split: str, mode: str, episode: str) -> dict[str, Any] | None:
        """The whole of an episode, or None: every column, `messages` and `turn_parts` read."""
        question = "SELECT * FROM episodes WHERE phase = ? AND step = ? AND split = ? AND mode = ? AND episode = ? LIMIT 1"
        found = self._ask(question, [phase, step, split, mode, text(episode)])
        if not found:
            return None
        row = _plain(found[0])
        return {**row, "messages": json.loads(row["messages"]), "turn_parts": json.loads(row["turn_parts"] or "{}")}

    def group(self, phase: str, step: int, split: str, mode: str, task: str) -> list[dict[str, Any]]:
        """The episodes of one task at one moment, in the order of their samples."""
        question = f"SELECT {LISTED} FROM episodes WHERE phase = ? AND step = ? AND split = ? AND mode = ? AND task = ? ORDER BY sample"
        return [_plain(row) for row in self._ask(question, [phase, step, split, mode, task])]

    def rewards(self, phase: str) -> list[tuple[int, float, float, float]]:
        """The reward of each training step, as (step, mean, low, high): the mean over its tasks, with that mean's 95 % interval.

        The attempts at one task are one observation: they are alike.
        """
        told = f"abs(reward) <= {LARGEST_REWARD}"  # and so neither null nor NaN
        each = f"SELECT step, task, avg(reward) AS worth FROM episodes WHERE phase = ? AND split = 'train' AND {told}"
        question = f"SELECT step, avg(worth) AS mean, stddev_samp(worth) AS spread, count(*) AS n FROM ({each} GROUP BY step, task)"
        rows = self._ask(f"{question} GROUP BY step ORDER BY step", [phase])
        halves = [Z_95 * (row["spread"] or 0.0) / math.sqrt(row["n"]) for row in rows]
        return [(row["step"], row["mean"], row["mean"] - half, row["mean"] + half) for row, half in zip(rows, halves, strict=True)]

    def _ask(self, question: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        files = [str(file) for file, _ in moments(self._folder)]
        if not files:
            return []
        cursor = self._db.cursor()
        answer = cursor.execute(
            question.replace("FROM episodes", "FROM read_parquet(?, union_by_name=true)", 1), _inserted(question, files, values)
        )
        names = [column[0] for column in answer.description or ()]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def _inserted(question: str, files: list[str], values: Sequence[Any]) -> list[Any]:
    """The values with the files where their question mark stands."""
    before = question.partition("FROM episodes")[0].count("?")
    return [*values[:before], files, *values[before:]]


def _where(wanted: Wanted) -> tuple[str, list[Any]]:
    asked, values = list[str](), list[Any]()
    for name, value in wanted.exact.items():
        assert name in EXACT, f"no column to choose by: {name}"
        asked.append(f"{name} = ?")
        values.append(text(value))
    if wanted.step is not None:
        asked.append("step = ?")
        values.append(wanted.step)
    if wanted.failed is not None:
        asked.append(f"failure IS {'NOT ' if wanted.failed else ''}NULL")
    if wanted.text:
        asked.append(SAID)
        values += 2 * [text(json.dumps(wanted.text, ensure_ascii=False)[1:-1])]
    return (f"WHERE {' AND '.join(asked)}" if asked else ""), values


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The row with one number for what a list shows of the tokens: the mean advantage of those that the policy sampled."""
    if "advantages" in row and "lengths" not in row:
        values, mask = row.pop("advantages"), row.pop("mask")
        trained = [value for value, is_trained in zip(values or (), mask or (), strict=False) if is_trained]
        row["advantage"] = sum(trained) / len(trained) if trained else None
    return row
