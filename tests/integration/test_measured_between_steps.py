"""Held-out tasks that are played between the steps of a phase: where they stand, and that a run killed on the way comes out the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.integration.scripted_run import folder_of
from tests.integration.test_killed_anywhere import PROGRAM, ROOT, settled, what_came_of
from tests.unit.test_recorded_steps import REWARD

from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.records import read_json_lines

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RECIPE = """
name = "measured"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"

[rft]
steps = 5
groups_per_step = 2
group_size = 3
max_refills = 1
rollouts = "{rollouts}"
lr = 1e-3
checkpoint_every = 3

[rollout]
max_tokens_per_turn = 6

[engine]
max_context = 128

[learner]
threads = 1

[evaluation]
tasks = 3
every = 2
every_tasks = 2
before = false
"""
MOMENTS = {
    "sync": (
        "measured:1",  # between a measurement and the row that it is a part of
        "metrics:2",  # between the row and the checkpoint: it is taken back, and measured again
        "measured:3,evaluation-due:1",  # in the last step; and then with the transcripts of the evaluation in their place
    ),
    "one_step_off": ("measured:2", "updated:5"),
    "async": (),
}


@pytest.mark.parametrize("rollouts", MOMENTS)
def test_a_phase_is_measured_in_its_course(rollouts: str, tiny_model: Path, tmp_path: Path) -> None:
    recipe, runs, moments = tmp_path / "recipe.toml", tmp_path / "runs", MOMENTS[rollouts]
    recipe.write_text(RECIPE.format(model=tiny_model, reward=REWARD, rollouts=rollouts))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", PROGRAM, str(recipe), str(runs), "whole", *moments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(("whole", *moments), 0)
    whole = what_came_of(runs / "whole")
    rows = {row["step"]: row for row in whole["metrics.jsonl"]}
    assert {step: row.get("held_out/tasks") for step, row in rows.items()} == {1: None, 2: 2, 3: None, 4: 2, 5: 2}
    assert all(0 <= rows[step]["held_out/success"] <= 1 and "held_out/reward/env" in rows[step] for step in (2, 4, 5))
    assert "rft step 2, held out (sampled, n = 2): success" in done.stdout
    stored = Counter((one.step, one.mode) for one in read_run_transcripts(runs / "whole") if one.split == "heldout")
    assert stored == {(2, "sampled"): 2, (4, "sampled"): 2, (5, "sampled"): 3, (5, "greedy"): 3}, "after the phase, all three are there"
    assert [row["step"] for row in whole["evaluations.jsonl"]] == [5, 5]
    books = [row for _, row in read_json_lines(runs / "whole" / "ledger.jsonl")]
    assert books[-1]["issued"] == books[-1]["trained"] + sum(books[-1]["masked"].values()) + sum(books[-1]["dropped"].values())
    for moment in moments:
        found = what_came_of(runs / folder_of(moment))
        for what, value in whole.items():
            of = settled if what == "ledger.jsonl" and rollouts == "one_step_off" else lambda rows: rows
            assert of(found[what]) == of(value), f"{what}, killed at {moment}"
