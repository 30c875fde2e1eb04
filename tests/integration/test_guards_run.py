"""A guard that is answered with "roll_back": the run goes on from its last checkpoint with other tasks, and not for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.test_recorded_steps import REWARD

from burnish.inspector.report import write_report
from burnish.inspector.runs import read_run, read_run_transcripts

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name = "guarded"
model = "{model}"
environment = "burnish/Arithmetic-v0"
reward_function = "{reward}"
rft = {{ steps = 5, groups_per_step = 2, group_size = 3, max_refills = 1, lr = 1e-3, checkpoint_every = 2 }}
rollout = {{ max_tokens_per_turn = 6 }}
engine = {{ max_context = 128 }}
learner = {{ threads = 1 }}
evaluation = {{ tasks = 2, before = false, after = false }}

[guards]
drift = "roll_back"
roll_backs = 2
"""


TALKS = """
sft = {{ data = "{talks}", steps = 2, batch = 2, lr = 1e-3 }}
"""


def guarded(model: Path, folder: Path, how: str, every: int = 2, before: str = "") -> tuple[Path, subprocess.CompletedProcess[str]]:
    recipe = folder / "guarded.toml"
    recipe.write_text(before + RECIPE.format(model=model, reward=REWARD).replace("checkpoint_every = 2", f"checkpoint_every = {every}"))
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-m",
        "tests.integration.guarded_run",
        str(recipe),
        str(folder / "run"),
        how,
    ]
    return folder / "run", subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_goes_back_once_and_on_with_other_tasks(tiny_model: Path, tmp_path: Path) -> None:
    path, done = guarded(tiny_model, tmp_path, "once")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "step 3: guard drift: planted" in done.stdout and "resumed from rft-2" in done.stdout
    run = read_run(path)
    assert [row.step for row in run.metrics] == [1, 2, 3, 4, 5]
    assert [(row.step, row.guard, row.action, row.text) for row in run.alarms] == [(3, "drift", "roll_back", "planted")]
    assert run.ledger[-1].missing == 0
    by_step: dict[int, set[int]] = {}
    for transcript in read_run_transcripts(path):
        by_step.setdefault(transcript.step, set()).add(int(transcript.task.removeprefix("train-")))
    assert min(by_step[3]) - max(by_step[2]) > 2, "the tasks of the step that was taken back are not taken again"
    write_report(path)
    assert "What the guards found" in (path / "report.html").read_text()


def test_a_run_that_would_go_back_for_ever_stops(tiny_model: Path, tmp_path: Path) -> None:
    path, done = guarded(tiny_model, tmp_path, "always")
    assert done.returncode != 0
    assert "GuardStop: step 3: guard drift: planted; the run went back 2 times already" in done.stderr
    assert [row.step for row in read_run(path).metrics][-1] == 3


def beginnings(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What reinforcement began with, each time that it did: the learner's version and the digest of its weights."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [line.removeprefix("begins rft at ") for line in done.stdout.splitlines() if line.startswith("begins rft at ")]


@pytest.mark.parametrize("how", ["once", "lost"])
def test_the_beginning_of_training_is_the_model_that_it_started_from(tiny_model: Path, tmp_path: Path, how: str) -> None:
    """Three updates were made and no checkpoint: what goes on must not be the policy that the guard found wanting."""
    path, done = guarded(tiny_model, tmp_path, how, every=5)
    assert "the beginning of training" in done.stdout
    first, again = beginnings(done)
    assert first == again and first.startswith("0: ")
    assert [row.step for row in read_run(path).metrics] == [1, 2, 3, 4, 5]
    assert read_run(path).ledger[-1].missing == 0


@pytest.mark.parametrize("how", ["once", "lost"])
def test_a_phase_without_a_checkpoint_begins_again_with_what_the_one_before_it_left(tiny_model: Path, tmp_path: Path, how: str) -> None:
    talk = {"messages": [{"role": "user", "content": "3 + 4"}, {"role": "assistant", "content": "7"}]}
    talks = tmp_path / "talks.jsonl"
    talks.write_text("".join(json.dumps(talk) + "\n" for _ in range(4)))
    _, done = guarded(tiny_model, tmp_path, how, every=5, before=TALKS.format(talks=talks))
    first, again = beginnings(done)
    assert first == again and first.startswith("2: ")
