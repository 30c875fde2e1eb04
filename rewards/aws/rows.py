"""The rows of a reward Lambda: episodes as it reads them, and its answer as scores.

in   [{"id": "…", "messages": […], "reference_answer": …, "metadata": {"reference_answer": …, "other": …}}]
out  [{"id": "…", "aggregate_reward_score": 0.85, "metrics_list": [{"name": "accuracy", "value": 0.9, "type": "Reward"}]}]
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ...envs.registry import did_you_mean
from ...rpc.payload import MAX_JSON_VALUES, more_values, plain_json
from ..types import InvalidScore, RewardInput, Score

MAX_ANSWER_BYTES = 6 * 1024 * 1024
"""What AWS lets a synchronous call carry, each way; handlers of other kinds are held to it too."""
MOST_KEYS = 50
"""Of a row that are looked through for one that was misspelt."""
METRIC_TYPES = ("Reward", "Metric")
RESERVED = ("tools",)
"""Keys of a task's data that are no metadata: the rows' format has a place of its own for them."""


class BadAnswer(ValueError):
    """The answer, or a row of it, is not what the contract says. The text says what is wrong."""


def event_row(episode: RewardInput) -> dict[str, Any]:
    """One episode as a handler reads it; its id is unique to the attempt. Raises PayloadError when its data is not plain JSON."""
    data = plain_json(episode.data)
    metadata = {key: value for key, value in data.items() if key not in RESERVED}
    row: dict[str, Any] = {"id": episode.episode_id, "messages": [message.to_dict() for message in episode.messages]}
    if "reference_answer" in metadata:  # some documents have it at the top, others under metadata: it is in both
        row["reference_answer"] = metadata["reference_answer"]
    return plain_json({**row, "metadata": metadata})


def parse_answer(payload: bytes | str) -> Any:
    """JSON text as a handler's answer. Raises BadAnswer when it is none, or larger than any answer is."""
    if len(payload) > MAX_ANSWER_BYTES:
        raise BadAnswer(f"answers {len(payload)} bytes; at most {MAX_ANSWER_BYTES} are read")
    try:
        text = payload if isinstance(payload, str) else payload.decode("utf-8-sig")
        many = more_values(text, MAX_JSON_VALUES)
        answer = None if many else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"answers no JSON ({error}): {payload[:80]!r}") from None
    if many:
        raise BadAnswer(f"answers more than {MAX_JSON_VALUES} JSON values")
    return answer


def unwrap(answer: Any) -> Any:
    """The rows of an answer that may come in an API Gateway envelope, `{"statusCode": 200, "body": "[…]"}`.

    Raises BadAnswer when the envelope's status is an error or its body cannot be read.
    """
    if not isinstance(answer, Mapping) or "body" not in answer:
        return answer
    status, body = answer.get("statusCode", 200), answer["body"]
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status < 300:
        raise BadAnswer(f"answers statusCode {status!r}: {body!r:.200}")
    if isinstance(body, str) and answer.get("isBase64Encoded") is True:
        try:
            return parse_answer(base64.b64decode(body, validate=True))
        except binascii.Error as error:
            raise BadAnswer(f"answers a body that is not base64: {error}") from None
    return parse_answer(body) if isinstance(body, str) else body


def read_answer(answer: Any, ids: Sequence[str]) -> dict[str, Score | BadAnswer]:
    """What an answer says about each of the episodes asked for: a score, or what is wrong with its row.

    A bad row concerns its own episode only, and so do two rows for one. Rows that name no episode stand for those that got none; when
    there are more of them than that, the answer belongs to some other question. Raises BadAnswer when nothing can be read out of it.
    """
    rows = unwrap(answer)
    if not isinstance(rows, list):
        raise BadAnswer(f"must answer a list with one row per episode, not {type(rows).__name__} {rows!r:.200}")
    asked = frozenset(ids)
    named = [(row["id"], row) for row in rows if _names(row, asked)]
    strangers = len(rows) - len(named)
    counts = Counter(id for id, _ in named)
    missing = [id for id in ids if not counts[id]]
    if strangers > len(missing):
        raise BadAnswer(f"answers {len(rows)} rows for {len(ids)} episodes, {_strangers(rows, asked)}")
    found: dict[str, Score | BadAnswer] = {}
    for id, row in named:
        found[id] = _read_row(row) if counts[id] == 1 else BadAnswer(f"answers {counts[id]} rows with the id {id!r}")
    hint = f", {_strangers(rows, asked)}" if strangers else ""
    return found | {id: BadAnswer(f"answers no row with the id {id!r}{hint}") for id in missing}


def _names(row: Any, asked: Collection[str]) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("id"), str) and row["id"] in asked


def _strangers(rows: Sequence[Any], asked: Collection[str]) -> str:
    """What the first rows that name no episode look like."""
    return "; ".join(_stranger(row) for row in islice((row for row in rows if not _names(row, asked)), 3))


def _stranger(row: Any) -> str:
    if not isinstance(row, Mapping):
        return f"a {type(row).__name__}"
    if "id" not in row:
        return f"one without id{_meant('id', row)}"
    return f"one with the id {row['id']!r:.60}, which was not asked for"


def _meant(key: str, row: Mapping[Any, Any]) -> str:
    return did_you_mean(key, [name for name in islice(row, MOST_KEYS) if isinstance(name, str)])


def _read_row(row: Mapping[Any, Any]) -> Score | BadAnswer:
    try:
        if "aggregate_reward_score" not in row:
            raise BadAnswer(f"the row {row['id']!r} has no aggregate_reward_score{_meant('aggregate_reward_score', row)}")
        value = _number(row["aggregate_reward_score"], "aggregate_reward_score")
        parts: dict[str, float] = {}
        for name, part in _metrics(row.get("metrics_list")):
            if name in parts:
                raise BadAnswer(f"metrics_list has two entries called {name!r}")
            parts[name] = part
        return Score(value, parts)
    except (BadAnswer, InvalidScore) as error:
        return BadAnswer(f"row {row['id']!r}: {error}")


def _metrics(metrics: Any) -> Iterator[tuple[str, float]]:
    if metrics is None:
        return
    if not isinstance(metrics, list):
        raise BadAnswer(f"metrics_list must be a list, not {type(metrics).__name__}")
    for i, metric in enumerate(metrics):
        where = f"metrics_list[{i}]"
        if not isinstance(metric, Mapping):
            raise BadAnswer(f"{where} must be an object, not {type(metric).__name__}")
        name, kind = metric.get("name"), metric.get("type", "Metric")
        if not isinstance(name, str) or not name.strip():
            raise BadAnswer(f"{where}.name must be a text, not {name!r:.60}")
        if kind not in METRIC_TYPES:
            raise BadAnswer(f"{where}.type must be Reward or Metric, not {kind!r:.60}")
        yield name, _number(metric.get("value"), f"{where}.value")


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswer(f"{what} must be a number, not {value!r:.60}")
    try:
        return Score(float(value)).value
    except (InvalidScore, OverflowError):
        raise BadAnswer(f"{what} must be a finite number, not {str(value)[:60]}") from None
