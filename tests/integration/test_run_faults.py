"""What ends a run and what does not, with Ray, vLLM and a learner of its own: signals, a learner that dies or hangs, nothing to learn."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.integration.started import WAIT_S, Started, last_step

from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.json_lines import read_json_lines
from burnish.rollout.store.records import read_evaluations, read_ledger
from burnish.trainer.models.checkpoints import list_checkpoints

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

HERE = Path(__file__).parent
RECIPE = """
name = "faults"
model = "{model}"
environment = "burnish/Arithmetic-v0"
environment_weight = 0.0
reward_function = "{reward}"
success = "{part}"
plugins = ["{plugin}"]

[rft]
steps = {steps}
groups_per_step = 2
group_size = 4
max_refills = 0
lr = 1e-3
checkpoint_every = 2

[rollout]
max_tokens_per_turn = 8

[engine]
max_context = 128
kv_cache_mb = 32

[evaluation]
tasks = 1
greedy = false

[limits]
learner_s = 90.0

[resources]
object_store_mb = 128
"""


def learner_of(run: Started) -> psutil.Process:
    (found,) = [child for child in run.children if child.cmdline() and child.cmdline()[0].lower().startswith("ray::learner")]
    return found


def recipe(folder: Path, model: Path, reward: str, plugin: str, steps: int) -> Path:
    file = folder / "faults.toml"
    part = reward.partition("/")[2].removesuffix("-v1")
    file.write_text(RECIPE.format(model=model, reward=reward, part=part, plugin=HERE / plugin, steps=steps))
    return file


def test_a_lost_learner_is_replaced_once_and_whatever_kills_the_driver_no_task_is_skipped_or_repeated(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Started]
) -> None:
    run = tmp_path / "run"
    first = start("run", str(recipe(tmp_path, tiny_model, "tests/digits-v1", "digit_reward.py", 100_000)), "--run-dir", str(run))
    first.until(lambda: last_step(run) >= 3, "third step")
    learner_of(first).kill()
    first.until_said("resumed from rft-")
    assert "the learner died: its process ended; it was killed, perhaps for want of memory; it is started once more, from" in first.said
    reached = last_step(run)
    first.until(lambda: last_step(run) > reached + 2, "step of the second learner")
    assert first.end(signal.SIGTERM) == (143, [])
    *_, how, resumes = first.said.splitlines()
    assert (how, resumes) == ("terminated", f"the run is in {run}; continue it with `burnish run {run} --resume`"), first.said[-3000:]

    reached = last_step(run)
    second = start("run", str(run), "--resume", "--set", "limits.learner_s=60.0")
    second.until(lambda: last_step(run) > reached, "step after the resume")
    hung = learner_of(second)
    hung.suspend()
    second.until_said("the learner did not answer within 60 s; it is started once more, from rft-")
    second.until_said("resumed from rft-")
    reached = last_step(run)
    second.until(lambda: last_step(run) > reached + 1, "step of the third learner")
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE
    assert second.end(signal.SIGKILL) == (-signal.SIGKILL, [])

    third = start("run", str(run), "--resume", "--set", "limits.learner_s=60.0")
    third.until_said("resumed from rft-")
    reached = last_step(run)
    third.until(lambda: last_step(run) > reached + 1, "step after the kill")
    assert third.end(signal.SIGINT) == (130, [])

    steps = [int(row["step"]) for _, row in read_json_lines(run / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    issued = [(step, f"train-{2 * (step - 1) + i}", sample) for step in steps for i in range(2) for sample in range(4)]
    stored = [(one.step, one.task, one.sample) for one in read_run_transcripts(run) if one.split == "train"]
    assert sorted(stored) == sorted(issued)
    assert all(row.missing == 0 and row.carried == 0 and row.issued == 8 * row.step for row in read_ledger(run / "ledger.jsonl"))


def test_a_task_that_teaches_nothing_ends_with_a_checkpoint_an_evaluation_and_a_report(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Started]
) -> None:
    run = tmp_path / "run"
    whole = start("run", str(recipe(tmp_path, tiny_model, "tests/always-one-v1", "always_one.py", 20)), "--run-dir", str(run))
    assert whole.process.wait(WAIT_S) == 0, whole.said[-3000:]
    assert "training ended early: for 5 steps no group taught anything (2 zero_variance in the last, mean reward 1.00)" in whole.said
    assert [(record.name, record.final) for record in list_checkpoints(run)] == [("rft-4", False), ("rft-5", True)]
    assert (run / "report.html").is_file()

    def measured() -> list[tuple[str, int, int]]:
        return [(one.phase, one.step, one.result.episodes) for one in read_evaluations(run / "evaluations.jsonl")]

    assert measured() == [("base", 0, 1), ("rft", 5, 1)]
    rows = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text(rows[0])  # as if it had been killed before its last evaluation
    again = start("run", str(run), "--resume")
    assert again.process.wait(WAIT_S) == 0, again.said[-3000:]
    assert measured() == [("base", 0, 1), ("rft", 5, 1)] and last_step(run) == 5
    assert len([one for one in read_run_transcripts(run) if one.split == "heldout"]) == 2
    more = start("run", str(run), "--resume", "--set", "rft.steps=30")
    assert more.process.wait(WAIT_S) == 2
    assert "cannot resume with rft.steps: 20 -> 30: it ended early, at step 5" in more.said
    assert json.loads((run / "config.json").read_text())["rft"]["steps"] == 20


def test_sigterm_ends_a_chat_service_in_one_line(tiny_model: Path, start: Callable[..., Started]) -> None:
    service = start("serve", str(tiny_model), "--port", "0")
    service.until_said("(Ctrl-C stops it)")
    assert service.end(signal.SIGTERM) == (143, [])
    assert service.said.splitlines()[1:] == ["terminated"], service.said[-3000:]
