"""kill -9 of the driver at any moment, then `--resume`: the same run comes out, with no task skipped or repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.integration.scripted_run import folder_of
from tests.unit.test_recorded_steps import REWARD

from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.json_lines import read_json_lines
from burnish.rollout.store.records import read_ledger
from burnish.trainer.models.checkpoints import latest, list_checkpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = "tests.integration.scripted_run"
ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name = "killed"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"

[sft]
steps = 3
batch = 2
lr = 1e-3
checkpoint_every = 2
data = "{data}"

[rft]
steps = 5
groups_per_step = 2
group_size = 3
max_refills = 1
rollouts = "{rollouts}"
lr = 1e-3
checkpoint_every = 2

[rollout]
max_tokens_per_turn = 6

[engine]
max_context = 128

[learner]
threads = 1

[evaluation]
tasks = 3
"""
MOMENTS = {
    "sync": (
        "transcript:2",  # in the first evaluation, of which nothing is recorded yet
        "updated:1",  # before there is any checkpoint
        "model-written:1",  # during the first checkpoint
        "checkpoint:2",  # between the last checkpoint of a phase and its evaluation
        "evaluation-due:4",  # with the transcripts of an evaluation written, and the evaluation not
        "polled:13",  # in a rollout: two evaluations of three tasks before training, two after sft
        "ledger:2",  # between its books and its transcripts
        "transcript:27",  # between the transcripts of a step
        "storing:3",  # with the transcripts of an evaluation beside the store, and the evaluation not recorded
        "storing:6",  # of a step
        "stored:5",
        "state-written:3",  # during a checkpoint of reinforcement
        "ledger:5",  # in the last step
    ),
    "one_step_off": (
        "updated:4",  # in the first step, with the next one's groups under way
        "updated:6",  # in the third, with the fourth one's under way
        "ledger:2",  # at a checkpoint, where nothing is under way
        "transcript:27",
        "ledger:3",  # with groups under way that no checkpoint knows of
        "state-written:4",
    ),
}
"""By `rft.rollouts`: the schedules in which a run is the same every time."""


def steady(value: Any) -> Any:
    """A row of a run without what the clock says."""
    if not isinstance(value, dict):
        return value
    return {key: steady(item) for key, item in value.items() if key != "time" and not key.endswith(("seconds", "per_second"))}


def settled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Books of a run one step off. What is played in the place of a group that teaches nothing and ends while the learner learns is issued
    in that step or in the next, as the clock has it; at a checkpoint and at the end nothing is under way."""
    return [row if row["step"] % 2 == 0 or row is rows[-1] else {"step": row["step"], "trained": row["trained"]} for row in rows]


def what_came_of(run: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for times."""
    files = ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl")
    left: dict[str, Any] = {}
    for file in (run / name for name in files):
        left[file.name] = [steady(row) for _, row in read_json_lines(file)] if file.is_file() else []
    still = {"run": "", "turns": (), "metrics": {}}
    transcripts = [transcript.model_copy(update=still) for transcript in read_run_transcripts(run)]
    left["transcripts"] = sorted(transcripts, key=lambda one: (one.phase, one.step, one.split, one.mode, one.task, one.sample))
    left["checkpoints"] = [(record.name, record.final) for record in list_checkpoints(run)]
    last = latest(run)
    assert last is not None and not list((run / "checkpoints").glob(".*"))
    left["weights"] = {file.name: file.read_bytes() for file in sorted(last.model(run).glob("*.safetensors"))}
    return left


def play(rollouts: str, moments: Sequence[str], tiny_model: Path, folder: Path) -> Path:
    """Play a run for each moment, killed then and resumed until it ends; where they are."""
    data, recipe = folder / "data.jsonl", folder / "killed.toml"
    talk = [{"role": "user", "content": "part 1 bore"}, {"role": "assistant", "content": "pass"}]
    data.write_text("".join(json.dumps({"messages": [{**talk[0], "content": f"part {i} bore"}, talk[1]]}) + "\n" for i in range(5)))
    recipe.write_text(RECIPE.format(model=tiny_model, data=data, reward=REWARD, rollouts=rollouts))
    runs = folder / "runs"
    runs.mkdir()
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", PROGRAM, str(recipe), str(runs), *moments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {0}, (done.stdout + done.stderr)[-4000:]
    return runs


@pytest.mark.parametrize("rollouts", MOMENTS)
def test_a_run_killed_at_any_moment_and_resumed_is_the_run_that_was_not(rollouts: str, tiny_model: Path, tmp_path: Path) -> None:
    moments = MOMENTS[rollouts]
    runs = play(rollouts, ["whole", *moments], tiny_model, tmp_path)
    whole = what_came_of(runs / "whole")
    assert [(row["phase"], row["step"]) for row in whole["metrics.jsonl"]] == STEPS
    for moment in moments:
        found = what_came_of(runs / folder_of(moment))
        for what, value in whole.items():
            of = settled if what == "ledger.jsonl" and rollouts == "one_step_off" else lambda rows: rows
            assert of(found[what]) == of(value), f"{what}, killed at {moment}"


STEPS = [("sft", i) for i in (1, 2, 3)] + [("rft", i) for i in range(1, 6)]
ASYNC = (
    "updated:5",  # in a step, with groups of the next ones under way
    "state-written:4",  # during a checkpoint, with groups under way that it counts as open
    "ledger:3,updated:2",  # after a checkpoint, and once more as soon as it goes on
)


def test_an_async_run_that_was_killed_skips_no_task_repeats_none_and_keeps_its_books(tiny_model: Path, tmp_path: Path) -> None:
    """Which groups meet in a step depends on when they finish, so no two such runs are the same."""
    runs = play("async", ASYNC, tiny_model, tmp_path)
    for moment in ASYNC:
        run = runs / folder_of(moment)
        assert [(row["phase"], row["step"]) for _, row in read_json_lines(run / "metrics.jsonl")] == STEPS, moment
        books = read_ledger(run / "ledger.jsonl")
        assert [(row.phase, row.step, row.missing) for row in books] == [("rft", i, 0) for i in range(1, 6)], moment
        last = books[-1]
        assert last.carried == 0 and last.masked == {}, f"killed at {moment}: {last}"
        stored = [(one.task, one.sample) for one in read_run_transcripts(run) if one.split == "train"]
        given_up = last.dropped.get("surplus", 0)  # issued for steps that the phase did not have
        assert len(set(stored)) == len(stored) == last.issued - given_up, f"killed at {moment}: {last}"
        issued = {(f"train-{task}", sample) for task in range(last.issued // 3) for sample in range(3)}
        assert set(stored) <= issued and len(issued) == last.issued, f"killed at {moment}"
        assert list_checkpoints(run)[-1].final and not list((run / "checkpoints").glob(".*"))


TWO_PHASES = """
name = "ended"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"

[[phases]]
kind = "rft"
name = "first"
steps = 50
groups_per_step = 2
group_size = 3
max_refills = 1
max_tokens = 40
rollouts = "{rollouts}"
lr = 1e-3
checkpoint_every = 50

[[phases]]
kind = "rft"
name = "second"
steps = 1
groups_per_step = 2
group_size = 4
lr = 1e-3

[rollout]
max_tokens_per_turn = 6

[engine]
max_context = 128

[learner]
threads = 1

[evaluation]
tasks = 3
before = false
greedy = false
"""


@pytest.mark.parametrize("rollouts", ["one_step_off", "async"])
def test_a_phase_that_a_budget_ended_leaves_nothing_open_to_its_evaluation_and_the_next_phase(
    rollouts: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Resumed between its checkpoint and its evaluation, it waited for groups that nobody played; the next phase began with groups of the
    size of this one."""
    recipe = tmp_path / "ended.toml"
    recipe.write_text(TWO_PHASES.format(model=tiny_model, reward=REWARD, rollouts=rollouts))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", PROGRAM, str(recipe), str(tmp_path), "evaluation-due:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {0}, (done.stdout + done.stderr)[-4000:]
    run = tmp_path / "evaluation-due-1"
    books = [row for _, row in read_json_lines(run / "ledger.jsonl")]
    first = [row for row in books if row["phase"] == "first"]
    assert len(first) < 50 and first[-1]["carried"] == 0 and first[-1]["dropped"]["surplus"] > 0 and books[-1]["phase"] == "second"
    assert "surplus" not in books[-1]["dropped"], "its books are its own"
    assert [row["phase"] for _, row in read_json_lines(run / "evaluations.jsonl")] == ["first", "second"]
