"""JSONL rows and reward Lambdas' answers made up by a machine: read as they are meant, or refused with the reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.made_up import JSON, spoiled

from burnish.envs.rows import Row, parse_object, read_rows
from burnish.envs.types import Task
from burnish.rewards.aws.rows import BadAnswer, event_row, parse_answer, read_answer
from burnish.rewards.types import RewardInput, Score
from burnish.rpc.payload import plain_json
from burnish.trainer.data.task_files import task_row

MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.one_of(st.text(max_size=10), st.just([{"type": "text", "text": "t"}])),
    },
    optional={
        "name": st.just("n"),
        "tool_call_id": st.just("c"),
        "tool_calls": st.just([{"id": "c", "function": {"name": "f", "arguments": {}}}]),
    },
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": st.sampled_from(["f", "g"])})}),
    max_size=2,
)
ROWS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3).map(lambda messages: [*messages, {"role": "user", "content": "2 + 2?"}])},
    optional={"id": st.text(max_size=5), "reference_answer": JSON, "tools": TOOLS, "other": JSON},
)

IDS = ("e0", "e1", "e2")
METRIC = st.fixed_dictionaries(
    {"name": st.sampled_from(["m", "n"]), "value": st.floats(), "type": st.sampled_from(["Reward", "Metric", "Else"])}
)
SCORED = st.fixed_dictionaries(
    {"id": st.sampled_from([*IDS, "e9"]), "aggregate_reward_score": st.floats(-2, 2)},
    optional={"metrics_list": st.lists(METRIC, max_size=2)},
)
GOOD = st.just([{"id": id, "aggregate_reward_score": 0.5} for id in IDS])
ENVELOPE = st.one_of(GOOD, st.lists(SCORED, max_size=4)).flatmap(
    lambda rows: st.sampled_from([rows, {"statusCode": 200, "body": json.dumps(rows)}, {"body": rows, "isBase64Encoded": False}])
)


def table(rows: list[list[str]]) -> bytes:
    """Rows of cells as CSV."""
    out = io.StringIO()
    csv.writer(out).writerows([["id", "messages"], *rows])
    return out.getvalue().encode("utf-8", "surrogatepass")


@given(st.one_of(spoiled(ROWS).map(json.dumps), JSON.map(json.dumps), st.text(max_size=40)))
def test_any_line_is_a_row_or_refused(line: str) -> None:
    try:
        row = task_row(parse_object(line), "train", 3)
    except ValueError as error:
        assert str(error)
        return
    assert row.messages[-1].role != "assistant" and any(message.role == "user" for message in row.messages)
    assert plain_json(row.data) == row.data
    assert row.id and (row.given or row.id == "train-3")
    event = event_row(RewardInput("t/0", Task("t", 0), row.messages, 0.0, data=row.data))
    assert json.loads(json.dumps(event)) == event
    assert event.get("reference_answer") == event["metadata"].get("reference_answer") == row.data.get("reference_answer")


@given(
    st.sampled_from(["a.jsonl", "a.json", "a.ndjson", "a.JSONL.gz", "a.csv", "a.parquet", "a.txt", "a.md.gz"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.one_of(
        st.lists(st.one_of(spoiled(ROWS), JSON).map(json.dumps), max_size=4).map(lambda lines: "\n".join(lines).encode()),
        st.lists(st.one_of(ROWS, JSON), max_size=4).map(lambda rows: json.dumps(rows, indent=1).encode()),
        st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), max_size=4).map(table),
        st.binary(max_size=60),
    ),
    st.integers(0, 200),
    st.booleans(),
)
def test_any_file_is_rows_or_refused(name: str, mark: bytes, content: bytes, cut: int, prose: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        content = (mark + content)[: cut or None]
        file.write_bytes(gzip.compress(content)[: -3 if cut % 5 == 1 else None] if name.endswith("gz") else content)
        rows: list[Row] = []
        try:
            for row in read_rows(file, prose):
                assert row.where == f"{file}:{row.number}" and row.number > 0
                if isinstance(row, Row):
                    rows.append(row)
                else:
                    assert row.problem and "\n" not in row.problem
        except ValueError as error:
            assert str(file) in str(error)
        for row in rows:
            assert plain_json(row.value) == row.value


@given(spoiled(ENVELOPE))
def test_an_answer_gives_every_episode_its_own_number_or_a_reason(answer: Any) -> None:
    try:
        found = read_answer(answer, IDS)
    except BadAnswer as error:
        assert str(error)
        return
    assert set(found) == set(IDS)
    body = answer.get("body", answer) if isinstance(answer, dict) else answer
    rows = json.loads(body) if isinstance(body, str) else body
    for id, result in found.items():
        if isinstance(result, BadAnswer):
            assert id in str(result)
            continue
        own = [row for row in rows if isinstance(row, dict) and row.get("id") == id]
        assert len(own) == 1 and result.value == own[0]["aggregate_reward_score"], "the number of its own row, and of no other"
        assert isinstance(result, Score) and math.isfinite(result.value)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_json_or_refused(payload: bytes) -> None:
    try:
        parse_answer(payload)
    except BadAnswer as error:
        assert str(error)
