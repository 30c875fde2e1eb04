"""Stored rows: what is written is read back, whole or not at all, and bad rows are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, Message, Outcome, Reward, Task, ToolCall, Trajectory, Turn
from burnish.rollout.store.json_lines import JsonLines, keep_rows, read_json_lines
from burnish.rollout.store.records import Comparison, EvaluationRecord, EvaluationResult, LedgerRow, read_evaluations, read_ledger
from burnish.rollout.store.transcripts import TranscriptWriter, read_transcripts, transcript_of

pytestmark = pytest.mark.unit

NASTY = "<script>alert(1)</script> [bold]x[/bold] \x1b[31mred\x1b[0m \u2028 \u202e \ud800 ü \x00 end"


def episode(outcome: Outcome, text: str = "scrap") -> Episode:
    messages = (
        Message("user", "Inspect part 17."),
        Message("assistant", text, (ToolCall("call_0", "measure", {"part": 17}),)),
        Message("tool", "0.02", tool_call_id="call_0", name="measure"),
    )
    ids = np.array([1, 5, 6, 7], np.int32)
    versions = np.array([-1, 3, 3, 4], np.int32)
    trajectory = Trajectory(ids, np.array([False, True, True, True]), np.zeros(4, np.float32), versions)
    turn = Turn(ids[1:], np.zeros(3, np.float32), versions[1:], "length", 0.5, 0.25)
    metrics = {"cost": np.float32(2.0)}
    return Episode(Task("train-17", 17), 2, (trajectory,), messages, outcome, (turn,), "context", metrics, {"expected": "scrap"})  # type: ignore[arg-type]


def test_a_transcript_holds_the_episode(tmp_path: Path) -> None:
    rewarded = transcript_of(episode(Reward(0.5, {"env": 0.5}), NASTY), run="demo", phase="rft", step=7)
    failed = transcript_of(
        episode(Failure(FailureKind.TOOL_TIMEOUT, "gauge", "late")), run="demo", phase="rft", step=8, split="heldout", mode="greedy"
    )
    file = tmp_path / "transcripts" / "runner-0.jsonl"
    with TranscriptWriter(file) as writer:
        writer.write(rewarded)
        writer.write(failed)
    assert list(read_transcripts(file)) == [rewarded, failed]
    assert list(read_transcripts(file.parent)) == [rewarded, failed]
    row = json.loads(file.read_bytes().splitlines()[0])
    assert row["schema"] == 1
    assert (row["episode"], row["task"], row["seed"], row["sample"]) == ("train-17/2", "train-17", 17, 2)
    assert row["messages"][1]["content"] == NASTY, "stored as said, whatever it contains"
    assert row["turns"] == [
        {"tokens": 3, "stop_reason": "length", "generate_s": 0.5, "env_s": 0.25, "oldest_version": 3, "newest_version": 4}
    ]
    assert (row["trainable_tokens"], row["context_tokens"], row["truncation"], row["metrics"]) == (3, 4, "context", {"cost": 2.0})
    assert "failure" not in row
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.TOOL_TIMEOUT
    assert rewarded.chat[1].tool_calls[0].arguments == {"part": 17}


def test_values_per_turn_are_stored_under_a_schema_of_their_own(tmp_path: Path) -> None:
    plain = transcript_of(episode(Reward(0.5, {"env": 0.5})), run="demo", phase="rft", step=7)
    per_turn = transcript_of(episode(Reward(0.5, {"brief": -0.25}, {"brief": (-0.25,)})), run="demo", phase="rft", step=7)
    file = tmp_path / "t.jsonl"
    with TranscriptWriter(file) as writer:
        writer.write(plain)
        writer.write(per_turn)
    first, second = (json.loads(line) for line in file.read_bytes().splitlines())
    assert (first["schema"], first["reward"]) == (1, {"total": 0.5, "parts": {"env": 0.5}}), "an older reader can still read it"
    assert (second["schema"], second["reward"]["turns"]) == (2, {"brief": [-0.25]})
    assert list(read_transcripts(file)) == [plain, per_turn]


def test_the_tools_that_the_prompt_describes_are_stored_under_a_schema_of_their_own(tmp_path: Path) -> None:
    tools = ({"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": {"type": "object"}}},)
    stored = transcript_of(dataclasses.replace(episode(Reward(0.5)), tools=tools), run="demo", phase="rft", step=7)
    with TranscriptWriter(tmp_path / "t.jsonl") as writer:
        writer.write(stored)
    row = json.loads((tmp_path / "t.jsonl").read_bytes())
    assert (row["schema"], row["tools"]) == (3, list(tools))
    assert list(read_transcripts(tmp_path / "t.jsonl")) == [stored]


def test_each_row_is_one_line_of_ascii(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    with TranscriptWriter(file) as writer:
        writer.write(transcript_of(episode(Reward(0.0), NASTY), run="r", phase="sft", step=0))
    content = file.read_bytes()
    assert content.count(b"\n") == 1
    assert content.isascii()
    assert b"\x1b" not in content


def changed(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 4}, "schema"),
        ({"reward": {"total": 0.0, "parts": {}, "turns": {"cost": [0.0]}}}, "reward.turns belongs to schema 2"),
        ({"schema": 2, "reward": {"total": 0.0, "parts": {}, "turns": {"cost": [0.0, 1.0]}}}, "cost has 2 values, the episode has 1 turns"),
        ({"tools": [{"type": "function"}]}, "tools belong to schema 3"),
        ({"colour": "red"}, "colour"),
        ({"reward": None}, "either a reward or a failure"),
        ({"failure": {"kind": "tool_error", "culprit": "x", "detail": "y"}}, "either a reward or a failure"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 0: role 'robot' is unknown"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "message 0: weight is not read"),
        ({"trainable_tokens": -1}, "trainable_tokens"),
        ({"task": None}, "task: is required"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "t.jsonl"
    good = transcript_of(episode(Reward(0.0)), run="r", phase="sft", step=0).model_dump(by_alias=True, exclude_none=True, mode="json")
    with JsonLines(file) as lines:
        lines.append(good)
        lines.append(changed(good, **changes))
    with pytest.raises(ValueError, match=f"t.jsonl:2: .*{message}"):
        list(read_transcripts(file))


def test_what_is_not_json_is_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"a": 1}\n\nnonsense\n')
    with pytest.raises(ValueError, match=r"t.jsonl:3: not JSON"):
        list(read_json_lines(file))
    file.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"t.jsonl:1: must be a JSON object, not list"):
        list(read_json_lines(file))


def test_numbers_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    bad = Episode(Task("t", 1), 0, (), (), Reward(0.0), metrics={"cost": float("nan")})
    with pytest.raises(ValueError, match=r"episode t/0 cannot be stored: metrics.cost"):
        transcript_of(bad, run="r", phase="sft", step=0)
    with JsonLines(tmp_path / "m.jsonl") as lines, pytest.raises(ValueError, match="Out of range"):
        lines.append({"loss": float("inf")})
    assert (tmp_path / "m.jsonl").read_bytes() == b""


@pytest.mark.parametrize("whole", [b"", b'{"a":1}\n'])
@pytest.mark.parametrize("torn", [b'{"a":2', b'{"a":"' + b"x" * 200_000])
def test_an_unfinished_last_line_is_skipped_and_then_replaced(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    file = tmp_path / "m.jsonl"
    file.write_bytes(whole + torn)
    assert len(list(read_json_lines(file))) == whole.count(b"\n")
    with JsonLines(file) as lines:
        lines.append({"a": 3})
    assert file.read_bytes() == whole + b'{"a":3}\n'


def test_a_row_that_could_not_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.write
    with JsonLines(tmp_path / "m.jsonl") as lines:
        lines.append({"a": 1})
        monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
        with pytest.raises(OSError, match="is the disk full"):
            lines.append({"a": 2})
        monkeypatch.undo()
        lines.append({"a": 3})
    assert (tmp_path / "m.jsonl").read_bytes() == b'{"a":1}\n{"a":3}\n'


def test_evaluations_are_stored_flat_and_read_back(tmp_path: Path) -> None:
    result = EvaluationResult("greedy", "verdict", 2, 2, 0.5, 0.1, 0.9, 0.4, 3.0, 20.0, {"t1": 1.0, "t2": 0.0})
    record = EvaluationRecord(phase="sft", step=60, against={"cpt": Comparison(0.25, 0.1, 0.4, 0.001, 2)}, result=result)
    file = tmp_path / "evaluations.jsonl"
    with JsonLines(file) as lines:
        lines.append(record.to_row())
    row = json.loads(file.read_text())
    assert (row["phase"], row["mode"], row["success"]) == ("sft", "greedy", 0.5)
    assert read_evaluations(file) == [record]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": None}, "schema None"),
        ({"phase": None}, "phase"),
        ({"succes": 1}, "succes: an evaluation has no such field"),
        ({"mode": "fast"}, "mode"),
    ],
)
def test_a_bad_evaluation_is_named_by_file_and_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    result = EvaluationResult("greedy", "verdict", 1, 1, 1.0, 0.2, 1.0, 1.0, 1.0, 2.0, {"t1": 1.0})
    file = tmp_path / "evaluations.jsonl"
    with JsonLines(file) as lines:
        lines.append(changed(EvaluationRecord(phase="sft", step=1, result=result).to_row(), **changes))
    with pytest.raises(ValueError, match=f"evaluations.jsonl:1: .*{message}"):
        read_evaluations(file)


def test_the_ledger_counts_where_every_sample_ended(tmp_path: Path) -> None:
    row = LedgerRow(phase="rft", step=3, issued=32, trained=20, masked={"tool_timeout": 1}, dropped={"zero_variance": 8}, carried=3)
    assert row.missing == 0
    assert row.model_copy(update={"trained": 19}).missing == 1
    file = tmp_path / "ledger.jsonl"
    with JsonLines(file) as lines:
        lines.append(row.to_row())
        lines.append({**row.to_row(), "lost": 1})
    with pytest.raises(ValueError, match=r"ledger.jsonl:2: lost"):
        read_ledger(file)
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    assert read_ledger(file) == [row]


def test_rows_that_are_kept_keep_their_bytes_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    keep_rows(file, lambda row: True)
    assert not file.exists()
    file.write_bytes(b'{"a": 1}\n{"a":2}\n{"a"')
    keep_rows(file, lambda row: row["a"] == 1)
    assert file.read_bytes() == b'{"a": 1}\n'
    same = file.stat().st_ino
    keep_rows(file, lambda row: True)
    assert file.stat().st_ino == same, "a file of which nothing is dropped is not written"
    file.write_bytes(b'{"a":1}\n[2]\n')
    with pytest.raises(ValueError, match=rf"{file}:2: "):
        keep_rows(file, lambda row: False)
    assert file.read_bytes() == b'{"a":1}\n[2]\n'
