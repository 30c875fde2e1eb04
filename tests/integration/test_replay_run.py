"""Demonstrations beside the steps of a whole run, over a scripted engine: killed and resumed, from the same rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.scripted_run import folder_of
from tests.integration.test_killed_anywhere import PROGRAM, ROOT, what_came_of
from tests.unit.test_recorded_steps import REWARD

from burnish.cli.data import trace
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.models.manifest import read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RECIPE = """
name = "replayed"
model = "{model}"
environment = "burnish/Arithmetic-v0"
success = "env"
reward_function = "{reward}"

[rft]
steps = 5
groups_per_step = 2
group_size = 3
lr = 1e-3
checkpoint_every = 2

[rft.replay]
own = "{talks}"
blend_ratio = 0.5
curated = "burnish/general-v1"
share = 0.3
weight = 0.2

[rollout]
max_tokens_per_turn = 6

[engine]
max_context = 250

[learner]
threads = 1

[evaluation]
before = false
after = false
"""
MOMENT = "updated:3,state-written:1"
"""In the third step, after the first checkpoint; and then while the next is written."""


def test_a_killed_run_learns_from_the_rows_of_one_that_was_not(tiny_model: Path, tmp_path: Path) -> None:
    recipe, runs, talks = tmp_path / "replayed.toml", tmp_path / "runs", tmp_path / "talks.jsonl"
    runs.mkdir()
    messages = [[{"role": "user", "content": f"part {i} bore"}, {"role": "assistant", "content": "pass"}] for i in range(5)]
    talks.write_text("".join(json.dumps({"messages": one}) + "\n" for one in messages))
    recipe.write_text(RECIPE.format(model=tiny_model, reward=REWARD, talks=talks))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", PROGRAM, str(recipe), str(runs), "whole", MOMENT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    whole, resumed = what_came_of(runs / "whole"), what_came_of(runs / folder_of(MOMENT))
    for what, value in whole.items():
        assert resumed[what] == value, what
    rows = whole["metrics.jsonl"]
    sequences = [row["learner/updates"] and 3 * row["groups_trained"] for row in rows]
    positions = [int(sum(sequences[: step + 1]) * 0.3 / 0.7 + 1e-9) for step in range(len(rows))]
    assert [row["replay_position"] for row in rows] == positions and positions[-1] > 5
    assert [row["learner/replay_sequences"] for row in rows] == [b - a for a, b in zip([0, *positions], positions, strict=False)]
    traced = [trace(runs / name, 3, None).lines for name in ("whole", folder_of(MOMENT))]
    assert traced[0] == traced[1] and any(line.startswith(f"rft replay step 3: positions {positions[1]} to ") for line in traced[0])
    assert "rft replay: " in done.stdout and "(30.00% asked for)" in done.stdout and "rft replay blend, own: " in done.stdout
    manifest = read_manifest(list_checkpoints(runs / "whole")[-1].model(runs / "whole"))
    assert manifest.training is not None
    tasks, *replayed = manifest.training.data
    assert tasks.source.startswith("burnish/Arithmetic-v0, seeds") and tasks.sha256 is not None and tasks.share is None
    shares = [use.share for use in replayed if use.replayed and use.share is not None and use.sha256 is not None]
    assert (shares[0].name, shares[0].asked) == ("own", 0.5) and len(shares) == 4
    for part in ("drawn", "tokens"):
        assert sum(getattr(one, part) for one in shares) == pytest.approx(1.0)
