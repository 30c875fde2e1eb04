"""A phase that ends with the weights of its lowest held-out loss, and comes out the same when it is killed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.scripted_run import folder_of
from tests.integration.test_killed_anywhere import PROGRAM, ROOT
from tests.unit.test_recorded_steps import REWARD

from burnish.rollout.store.json_lines import read_json_lines
from burnish.trainer.models.checkpoints import CheckpointRecord, list_checkpoints
from burnish.trainer.models.manifest import read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RECIPE = """
name = "best"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"
keep_checkpoints = 1

[[phases]]
kind = "sft"
steps = 8
batch = 4
lr = 1e-2
schedule = "constant"
data = "{train}"
held_out = "{held_out}"
held_out_every = 1
keep_best = true

[[phases]]
kind = "sft"
name = "again"
steps = 1
batch = 1
lr = 1e-9
data = "{train}"
held_out = "{held_out}"

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
    "updated:7",  # after the best step, whose checkpoint must still be there
    "state-written:1",  # during the checkpoint of the first step, the best so far
    "checkpoint:1,updated:8",  # between the first one and its pruning; and then in the last step
)


def rows(file: Path, answer: str) -> Path:
    talk = {"messages": [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": answer}]}
    file.write_text("".join(json.dumps(talk) + "\n" for _ in range(4)))
    return file


def weights(run: Path, record: CheckpointRecord) -> bytes:
    return (record.model(run) / "model.safetensors").read_bytes()


def test_a_phase_ends_with_its_best_weights_and_the_next_one_begins_with_them(tiny_model: Path, tmp_path: Path) -> None:
    """What is held out shares the end of its answers with what is trained, and nothing else: its loss falls at first, and then rises."""
    recipe = tmp_path / "recipe.toml"
    train, held_out = rows(tmp_path / "train.jsonl", "four four"), rows(tmp_path / "held_out.jsonl", "I believe it is two")
    recipe.write_text(RECIPE.format(model=tiny_model, reward=REWARD, train=train, held_out=held_out))
    out = subprocess.run(
        [sys.executable, "-m", PROGRAM, str(recipe), str(tmp_path / "runs"), "whole", *MOMENTS],
        cwd=ROOT, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert out.returncode == 0, out.stdout + out.stderr
    assert json.loads(out.stdout.splitlines()[-1]) == dict.fromkeys(("whole", *MOMENTS), 0)
    came = []
    for moment in ("whole", *MOMENTS):
        run = tmp_path / "runs" / folder_of(moment)
        losses = [row["held_out_loss"] for _, row in read_json_lines(run / "metrics.jsonl") if row["phase"] == "sft"]
        best = losses.index(min(losses)) + 1
        assert len(losses) == 8 and 1 < best < 8, f"{losses} does not fall and then rise"
        final, last = list_checkpoints(run)
        assert (final.name, final.weights_of, final.final) == ("sft-8", best, True)
        assert final.metrics["held_out_loss"] == min(losses)
        manifest = read_manifest(final.model(run))
        assert manifest is not None and manifest.training is not None and manifest.training.step == best
        assert last.name == "again-1"
        (again,) = [row for _, row in read_json_lines(run / "metrics.jsonl") if row["phase"] == "again"]
        assert again["held_out_loss_before"] == pytest.approx(min(losses), rel=1e-5), "the learner has these weights again"
        came.append((losses, best, weights(run, final), weights(run, last)))
    assert all(one == came[0] for one in came[1:])
    assert f"sft ends with the weights of step {came[0][1]}, the best by its rows that are held out" in out.stdout
