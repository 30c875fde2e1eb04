"""Scoring a file of conversations: what a row may hold, how a bad one is named, and what the command prints and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import Field
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.rewards.checks.trial import read_episodes
from burnish.rewards.options import signature_text, type_name
from burnish.rewards.plugin import REWARDS
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit

PLUGIN = '''
from pydantic import BaseModel, Field
from burnish import RewardInput, Score, TurnInput, reward

class Options(BaseModel):
    scale: float = Field(1.0, gt=0, description="the factor")
    label: str

@reward("trial-test/right-v1")
def right(episode: RewardInput, *, worth: float = 1.0):
    """Whether the answer is the reference."""
    return Score(worth * (episode.answer == episode.data["reference_answer"]), {"length": len(episode.answer or "")})

@reward("trial-test/turns-v1", level="turn")
def turns(turn: TurnInput) -> float:
    return float(turn.index)

@reward("trial-test/rank-v1", level="group", min_members=2)
def rank(episodes):
    lengths = [len(one.answer or "") for one in episodes]
    return [sum(other < mine for other in lengths) for mine in lengths]

@reward("trial-test/scaled-v1", level="batch", max_batch=8, cache=True)
async def scaled(episodes, *, options: Options):
    """Always the scale.

    Whatever was said.
    """
    return [options.scale for _ in episodes]
'''
TALK = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("trial") / "mine.py"
    file.write_text(PLUGIN)
    yield file
    for id in [id for id in REWARDS._loaded if id.startswith("trial-test/")]:
        REWARDS._loaded.pop(id)
        REWARDS._sources.pop(id)


def rewards(plugin: Path, *args: str) -> Result:
    return CliRunner().invoke(app, ["rewards", *args, "--plugin", str(plugin)])


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_a_row_is_an_episode(tmp_path: Path) -> None:
    row = {
        "id": 5,
        "messages": TALK,
        "metadata": {"source": "shop"},
        "data": {"hint": [1]},
        "reference_answer": {"value": 7},
        "metrics": {"cost": 2},
        "env_reward": 0.5,
        "env_parts": {"a": 0.5},
        "truncation": "context",
    }
    ((where, episode), (_, plain)) = read_episodes(write(tmp_path / "r.jsonl", row, "", {"messages": TALK}))
    assert where == f"{tmp_path}/r.jsonl:1"
    assert isinstance(episode, RewardInput) and isinstance(plain, RewardInput)
    assert (episode.episode_id, episode.task.id, episode.env_reward, episode.truncation) == ("5", "5", 0.5, "context")
    assert episode.data == episode.task.data == {"source": "shop", "hint": [1], "reference_answer": {"value": 7}}
    assert (episode.metrics, episode.env_parts) == ({"cost": 2.0}, {"a": 0.5})
    assert [message.text for message in episode.messages] == ["3 + 4?", "7"]
    assert (plain.episode_id, plain.data) == ("row-3", {})


def test_rows_that_begin_alike_are_attempts_at_one_task(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "2 + 2?"}, TALK[1]]
    file = write(
        tmp_path / "r.jsonl", {"id": "a", "messages": TALK}, {"messages": TALK}, {"messages": other}, {"task": "t", "messages": TALK}
    )
    assert [row.task.id for _, row in read_episodes(file, compared=True) if isinstance(row, RewardInput)] == ["a", "a", "row-3", "t"]
    assert [row.task.id for _, row in read_episodes(file) if isinstance(row, RewardInput)] == ["a", "row-2", "row-3", "t"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, not list"),
        ('{"messages": [], "metrics": {"a": NaN}}', "NaN is no JSON number"),
        ("[" * 100_000, "not JSON"),
        ({"messagse": TALK}, "unknown key 'messagse'; did you mean 'messages'?"),
        ({"id": "a"}, "messages: is required"),
        ({"messages": []}, "messages: must have at least 1 item"),
        ({"messages": ["hi"]}, "messages.0: must be a table"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 0: role 'robot' is unknown"),
        ({"messages": [{"role": "user"}]}, "message 0: content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 0: content part"),
        ({"messages": TALK, "metrics": {"cost": "dear"}}, "metrics.cost: must be a number"),
        ({"messages": TALK, "data": {"reference_answer": 1}, "reference_answer": 2}, "'reference_answer' is given twice"),
        ({"messages": TALK, "truncation": "late"}, "truncation: must be 'max_turns'"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path, row: Any, said: str) -> None:
    (first, (where, bad), last) = read_episodes(write(tmp_path / "r.jsonl", {"messages": TALK}, row, {"messages": TALK}))
    assert isinstance(first[1], RewardInput) and isinstance(last[1], RewardInput)
    assert where == f"{tmp_path}/r.jsonl:2"
    assert isinstance(bad, str) and said in bad
    assert "\n" not in bad


def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_episodes(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no rows"):
        read_episodes(write(tmp_path / "r.jsonl", ""))


def test_try_prints_a_table_and_writes_what_it_found(plugin: Path, tmp_path: Path) -> None:
    wrong = [TALK[0], {"role": "assistant", "content": "eight"}]
    file = write(
        tmp_path / "r.jsonl",
        {"id": "a", "messages": TALK, "reference_answer": "7"},
        {"messages": wrong, "metadata": {"reference_answer": "7"}},
    )
    out = tmp_path / "new" / "scored.jsonl"
    result = rewards(plugin, "try", "trial-test/right-v1", str(file), "--arg", "worth=2", "--out", str(out))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["row", "id", "right", "length"],
        [f"{file}:1", "a", "2", "1"],
        [f"{file}:2", "row-2", "0", "5"],
    ]
    assert lines[3] == "2 scored: mean 1, min 0, max 2"
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {"where": f"{file}:1", "id": "a", "score": 2.0, "parts": {"length": 1.0}, "labels": {}}
    assert second["score"] == 0.0


def test_try_lists_failures_per_row_and_says_so_in_its_exit_code(plugin: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", {"id": "a", "messages": TALK, "reference_answer": "7"}, {"id": "b", "messages": TALK}, "nonsense")
    out = tmp_path / "scored.jsonl"
    result = rewards(plugin, "try", "trial-test/right-v1", str(file), "--out", str(out))
    assert result.exit_code == 1
    assert "1 scored: mean 1, min 1, max 1\n2 failed:\n" in result.stdout
    assert f"{file}:2 (b): reward_error in trial-test/right-v1: task b: KeyError: 'reference_answer'" in result.stdout
    assert f"{file}:3: not JSON" in result.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (rows[1]["failure"]["kind"], rows[2]["error"][:8]) == ("reward_error", "not JSON")
    assert "score" not in rows[1] and "score" not in rows[2], "a failure is never a number"
    refused = rewards(plugin, "try", "trial-test/right-v1", str(file), "--out", str(file))
    assert (refused.exit_code, "would overwrite the file that is read" in refused.stderr) == (2, True)


def test_try_takes_every_level(plugin: Path, tmp_path: Path) -> None:
    long = [
        TALK[0],
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes!"},
    ]
    file = write(tmp_path / "r.jsonl", {"messages": TALK}, {"messages": long})
    out = tmp_path / "scored.jsonl"
    assert "2 scored: mean 0.5, min 0, max 1" in rewards(plugin, "try", "trial-test/turns-v1", str(file), "--out", str(out)).stdout
    assert [json.loads(line)["turns"] for line in out.read_text().splitlines()] == [[0.0], [0.0, 1.0]]
    assert "2 scored: mean 0.5, min 0, max 1" in rewards(plugin, "try", "trial-test/rank-v1", str(file)).stdout
    scaled = rewards(plugin, "try", "trial-test/scaled-v1", str(file), "--arg", "scale=3", "--arg", "label=x")
    assert "2 scored: mean 3, min 3, max 3" in scaled.stdout
    alone = rewards(plugin, "try", "trial-test/rank-v1", str(write(tmp_path / "one.jsonl", {"messages": TALK})))
    assert (alone.exit_code, "1 members, but it compares at least 2" in alone.stdout) == (1, True)


def test_list_and_show_say_what_a_reward_is(plugin: Path) -> None:
    rows = {line.split()[0]: line for line in rewards(plugin, "list").stdout.splitlines()}
    assert rows["id"].split() == ["id", "from"]
    assert "trial-test/right-v1" in rows and rows["trial-test/rank-v1"].endswith(f"{plugin}:rank")
    shown = rewards(plugin, "show", "trial-test/scaled-v1").stdout
    for text in (
        f"level batch, async, from {plugin}:scaled",
        "scaled(episodes, *, options: Options)\n",
        "timeout_s 10, max_concurrent 64, cache 1024, max_batch 8, max_wait_s 0.05",
        "scale   float, gt=0  1.0       the factor",
        "label   str          required",
        "Always the scale.\n\n  Whatever was said.\n",
    ):
        assert text in shown, shown
    assert "no options" in rewards(plugin, "show", "trial-test/turns-v1").stdout
    unknown = rewards(plugin, "show", "trial-test/scald-v1")
    assert (unknown.exit_code, "did you mean 'trial-test/scaled-v1'?" in unknown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (int, "int"),
        (Annotated[float, Field(ge=0, le=1)], "float, ge=0, le=1"),
        (Annotated[float, Field(gt=0)] | None, "float | None, gt=0"),
        (Literal["a", "b"] | None, "Literal['a', 'b'] | None"),
        (Optional[Literal["a"]], "Literal['a'] | None"),  # noqa: UP045  # as users write it
        (dict[str, list[RewardInput]], "dict[str, list[RewardInput]]"),
        (Sequence[RewardInput], "Sequence[RewardInput]"),
        (tuple[str, ...], "tuple[str, ...]"),
        (Any, "Any"),
    ],
)
def test_the_type_of_an_option_reads_as_it_would_be_written(annotation: Any, name: str) -> None:
    assert type_name(annotation) == name


def test_a_signature_shows_types_without_their_constraints_and_modules() -> None:
    def judge(episode: RewardInput, *, share: Annotated[float, Field(ge=0)] = 0.5, mode: Literal["a"] | None = None, more=3) -> list[Score]:
        return []

    assert signature_text(judge) == "(episode: RewardInput, *, share: float = 0.5, mode: Literal['a'] | None = None, more=3) -> list[Score]"


def test_check_takes_a_sample(plugin: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", {"messages": TALK, "reference_answer": "7"})
    result = rewards(plugin, "check", "trial-test/right-v1", "--sample", str(good))
    assert result.exit_code == 0, result.output
    assert "trial-test/right-v1: passed" in result.stdout and "latency in ms: call p50" in result.stdout
    bad = rewards(plugin, "check", "trial-test/right-v1", "--sample", str(write(tmp_path / "bad.jsonl", "x")))
    assert (bad.exit_code, f"{tmp_path}/bad.jsonl:1: not JSON" in bad.stderr) == (2, True)
