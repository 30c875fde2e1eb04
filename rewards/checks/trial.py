"""Scoring conversations that lie in a file, without training: what `burnish rewards try` does.

One row is one JSON object (the files that `envs.rows` reads), all keys but messages optional:

    {"id": "a", "messages": [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}], "reference_answer": "7"}

`data` (or `metadata`) and `reference_answer` are the hidden truth a reward finds in `episode.data`; `metrics`, `env_reward`, `env_parts`
and `truncation` are what an environment would have reported. Rows with the same `task` are attempts at one task, which a group reward
compares; without it, rows that begin alike up to the first assistant message are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...envs.failures import EpisodeFailure, Failure
from ...envs.pydantic_words import first_error
from ...envs.registry import did_you_mean
from ...envs.rows import BadRow, read_rows
from ...envs.types import Message, Task, Truncation, message_from_dict
from ..types import GroupScorer, RewardInput, Score, Scorer, compares

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Row(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | int | None = None
    task: str | int | None = None
    messages: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    metadata: dict[str, Any] = {}
    data: dict[str, Any] = {}
    reference_answer: Any = None
    metrics: dict[str, Finite] = {}
    env_reward: Finite = 0.0
    env_parts: dict[str, Finite] = {}
    truncation: Truncation | None = None

    @property
    def truth(self) -> dict[str, Any]:
        """Raises ValueError when two places give different values for one key."""
        places = {"metadata": self.metadata, "data": self.data}
        if self.reference_answer is not None:
            places["the row"] = {"reference_answer": self.reference_answer}
        truth: dict[str, Any] = {}
        for place, values in places.items():
            for key, value in values.items():
                if key in truth and truth[key] != value:
                    raise ValueError(f"{key!r} is given twice, with another value in {place}")
                truth[key] = value
        return truth


@dataclass(frozen=True, slots=True)
class TriedRow:
    """One row and what came of it. where: "file:line". result: a score, why there is none, or what is wrong with the row itself.

    Example: `TriedRow("answers.jsonl:1", "a", Score(1.0)).failed` is False.
    """

    where: str
    id: str
    result: Score | Failure | str

    @property
    def failed(self) -> bool:
        return not isinstance(self.result, Score)

    def to_row(self) -> dict[str, Any]:
        """As plain JSON: where and id, and either score, parts, labels, turns and explanation, or failure, or error."""
        row: dict[str, Any] = {"where": self.where, "id": self.id}
        result = self.result
        if isinstance(result, str):
            return {**row, "error": result}
        if isinstance(result, Failure):
            return {**row, "failure": {"kind": result.kind.value, "culprit": result.culprit, "detail": result.detail}}
        row |= {"score": result.value, "parts": dict(result.parts), "labels": dict(result.labels)}
        row |= {"turns": list(result.turns)} if result.turns else {}
        return {**row, "explanation": result.explanation} if result.explanation else row


Rows = list[tuple[str, RewardInput | str]]


def read_episodes(path: Path, compared: bool = False) -> Rows:
    """(where, episode) for every row, where reading "path:line"; in place of an episode, what is wrong with the row.

    compared: rows without a task are attempts at one task when they begin alike; otherwise each is a task of its own.
    Raises ValueError when the file is missing, of an unknown form, or holds no row at all.
    """
    rows: Rows = []
    for row in read_rows(path):
        if isinstance(row, BadRow):
            rows.append((row.where, row.problem))
            continue
        try:
            rows.append((row.where, _episode(row.value, row.number)))
        except ValueError as error:
            rows.append((row.where, str(error)))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    tasks: dict[tuple[Message, ...], str] = {}
    return [(where, _with_task(row, tasks if compared else {}) if isinstance(row, RewardInput) else row) for where, row in rows]


async def try_rows(scorer: Scorer | GroupScorer, rows: Rows) -> list[TriedRow]:
    """Score every row that is one, all at once as far as the plug-in's limits allow; groups by task when the scorer compares them."""
    episodes = {i: episode for i, (_, episode) in enumerate(rows) if isinstance(episode, RewardInput)}
    results: dict[int, Score | Failure] = {}

    async def single(i: int, scorer: Scorer) -> None:
        try:
            results[i] = await scorer.score(episodes[i])
        except EpisodeFailure as error:
            results[i] = error.failure

    async def group(members: Sequence[int], scorer: GroupScorer) -> None:
        try:
            found = await scorer.score_group([episodes[i] for i in members])
        except EpisodeFailure as error:
            found = [error.failure] * len(members)
        results.update(zip(members, found, strict=True))

    async with asyncio.TaskGroup() as running:
        if compares(scorer):
            tasks: dict[str, list[int]] = {}
            for i, episode in episodes.items():
                tasks.setdefault(episode.task.id, []).append(i)
            for members in tasks.values():
                running.create_task(group(members, scorer))
        else:
            for i in episodes:
                running.create_task(single(i, cast(Scorer, scorer)))
    return [
        TriedRow(where, row.episode_id if isinstance(row, RewardInput) else "", results[i] if isinstance(row, RewardInput) else row)
        for i, (where, row) in enumerate(rows)
    ]


def _episode(data: Mapping[str, Any], number: int) -> RewardInput:
    for key in data:
        if key not in _Row.model_fields:
            raise ValueError(f"unknown key {key!r}{did_you_mean(key, list(_Row.model_fields))}")
    try:
        row = _Row.model_validate(data)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    messages = tuple(_message(message, f"message {i}") for i, message in enumerate(row.messages))
    id = f"row-{number}" if row.id is None else str(row.id)
    task = Task("" if row.task is None else str(row.task), 0, (), row.truth)
    return RewardInput(id, task, messages, row.env_reward, row.env_parts, row.metrics, row.truth, row.truncation)


def _message(row: Mapping[str, Any], where: str) -> Message:
    try:
        return message_from_dict(row, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a chat message ({type(error).__name__}: {error})") from None


def _with_task(row: RewardInput, tasks: dict[tuple[Message, ...], str]) -> RewardInput:
    """Name the task of a row that does not: as that of the first row with the same messages up to the assistant's first."""
    if row.task.id:
        return row
    first = next((i for i, message in enumerate(row.messages) if message.role == "assistant"), len(row.messages))
    key = tuple(replace(message, tool_calls=()) for message in row.messages[:first])
    return replace(row, task=replace(row.task, id=tasks.setdefault(key, row.episode_id)))
