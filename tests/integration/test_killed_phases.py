"""kill -9 of the driver within each of the kinds of phase, twice in a row, then `--resume`: the run comes out that was not killed. Two of
the phases train adapters of their own, which the next begins from the merged weights of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.scripted_run import folder_of
from tests.integration.test_killed_anywhere import PROGRAM, ROOT, what_came_of
from tests.unit.test_recorded_steps import REWARD

from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.models.manifest import read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

RECIPE = """
name = "killed"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"
keep_checkpoints = 9

[[phases]]
kind = "midtrain"
steps = 4
batch = 2
checkpoint_every = 2
data = "{mixed}"
lora = {{ rank = 2, alpha = 8 }}

[[phases]]
kind = "dpo"
steps = 9
batch = 2
lr = 1e-3
checkpoint_every = 2
max_tokens = 50
data = "{pairs}"

[[phases]]
kind = "rft"
steps = 2
groups_per_step = 2
group_size = 3
lr = 1e-3
lora = {{ rank = 4, alpha = 8, targets = ["q_proj", "down_proj"] }}

[[phases]]
kind = "sft"
name = "again"
steps = 4
batch = 2
checkpoint_every = 2
data = "{talks}"
held_out = "{held_out}"
held_out_every = 1

[rollout]
max_tokens_per_turn = 6

[engine]
max_context = 128

[learner]
threads = 1

[evaluation]
before = false
after = false
"""
MOMENTS = (
    "updated:3,state-written:1",  # in mid-training after its first checkpoint, then again while it writes the next one
    "updated:6,updated:2",  # in the second step of pairs, twice: the reference has to be that of the phase's beginning
    "updated:11,metrics:2",  # in the second reinforcement, and after a step of the last phase, before its checkpoint
)


def rows(file: Path, values: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def talk(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"part {number} bore"}, {"role": "assistant", "content": "pass"}]}


def test_a_run_of_every_kind_killed_twice_is_the_run_that_was_not(tiny_model: Path, tmp_path: Path) -> None:
    recipe, runs = tmp_path / "killed.toml", tmp_path / "runs"
    runs.mkdir()
    files = {
        "mixed": rows(tmp_path / "mixed.jsonl", [{"text": f"part {i} is round"} for i in range(3)] + [talk(i) for i in range(2)]),
        "pairs": rows(tmp_path / "pairs.jsonl", [{"prompt": f"part {i}", "chosen": "pass", "rejected": "fail"} for i in range(5)]),
        "talks": rows(tmp_path / "talks.jsonl", [talk(i) for i in range(5)]),
        "held_out": rows(tmp_path / "held_out.jsonl", [talk(i) for i in range(5, 8)]),
    }
    recipe.write_text(RECIPE.format(model=tiny_model, reward=REWARD, **files))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", PROGRAM, str(recipe), str(runs), "whole", *MOMENTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {0}, (done.stdout + done.stderr)[-4000:]
    whole = what_came_of(runs / "whole")
    steps = [row["phase"] for row in whole["metrics.jsonl"]]
    assert list(dict.fromkeys(steps)) == ["midtrain", "dpo", "rft", "again"]
    assert steps.count("dpo") < 9 and "dpo ended at step" in done.stdout, "its budget of tokens was spent"
    assert all("held_out_loss" in row for row in whole["metrics.jsonl"] if row["phase"] == "again")
    last = list_checkpoints(runs / "whole")[-1]
    manifest = read_manifest(last.model(runs / "whole"))
    assert [ancestor.name for ancestor in manifest.lineage] == [
        read_manifest(tiny_model).name,
        "killed-midtrain",
        "killed-dpo",
        "killed-rft",
    ]
    assert (manifest.stage, manifest.training and manifest.training.kind) == ("sft", "sft")
    for moment in MOMENTS:
        found = what_came_of(runs / folder_of(moment))
        for what, value in whole.items():
            assert found[what] == value, f"{what}, killed at {moment}"
