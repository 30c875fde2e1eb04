"""Held-out tasks that are played between the steps of a phase: where they stand, which weights the phase ends with by them, and that a run
killed on the way comes out the same."""

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
from burnish.rollout.store.json_lines import read_json_lines
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.models.manifest import read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RECIPE = """
name = "measured"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"

[[phases]]
kind = "rft"
steps = 5
groups_per_step = 2
group_size = 3
max_refills = 1
rollouts = "{rollouts}"
lr = 1e-3
checkpoint_every = 3
keep_best = true

[[phases]]
kind = "rft"
name = "more"
steps = 2
groups_per_step = 2
group_size = 3
rollouts = "{rollouts}"
lr = 1e-9

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
        "checkpoint:3",  # of the weights that the phase went back to, before the engines were asked for them
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
    rows = {row["step"]: row for row in whole["metrics.jsonl"] if row["phase"] == "rft"}
    assert {step: row.get("held_out/tasks") for step, row in rows.items()} == {1: None, 2: 2, 3: None, 4: 2, 5: 2}
    assert all(0 <= rows[step]["held_out/success"] <= 1 and "held_out/reward/env" in rows[step] for step in (2, 4, 5))
    assert "rft step 2, held out (sampled, n = 2): success" in done.stdout
    heldout = (one for one in read_run_transcripts(runs / "whole") if (one.split, one.phase) == ("heldout", "rft"))
    after = {(5, "sampled"): 3, (5, "greedy"): 3}
    assert Counter((one.step, one.mode) for one in heldout) == {(2, "sampled"): 2, (4, "sampled"): 2, **after}
    assert [(row["phase"], row["step"]) for row in whole["evaluations.jsonl"]] == [("rft", 5)] * 2 + [("more", 2)] * 2
    # What the engine says follows from seeds alone, so the first measurement is as good as any.
    assert "rft ends with the weights of step 2, the best by its tasks that are held out: held_out/success" in done.stdout
    (best,) = [record for record in list_checkpoints(runs / "whole") if record.name == "rft-5"]
    manifest = read_manifest(best.model(runs / "whole"))
    assert (best.weights_of, best.final) == (2, True) and manifest is not None and manifest.training is not None
    assert manifest.training.step == 2 and best.metrics["weight_version"] == 2
    versions = [row["weight_version"] for row in whole["metrics.jsonl"] if row["phase"] == "more" and "weight_version" in row]
    assert versions == [3, 4] or rollouts != "sync", "the next phase goes on from there"
    books = [row for _, row in read_json_lines(runs / "whole" / "ledger.jsonl")]
    assert books[-1]["issued"] == books[-1]["trained"] + sum(books[-1]["masked"].values()) + sum(books[-1]["dropped"].values())
    for moment in moments:
        found = what_came_of(runs / folder_of(moment))
        for what, value in whole.items():
            of = settled if what == "ledger.jsonl" and rollouts == "one_step_off" else lambda rows: rows
            assert of(found[what]) == of(value), f"{what}, killed at {moment}"
