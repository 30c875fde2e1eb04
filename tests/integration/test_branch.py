"""`burnish branch` with a real engine: a model that knows nothing goes on where another speaker stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.stored_run import INSPECTS, played, recipe, seeded, stored, tiny_model

from burnish.inspector.stored import Which, chosen

pytestmark = pytest.mark.integration


def test_a_stored_episode_goes_on(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    run = recipe(model, "burnish/QualityInspection-v0", max_turns=3)
    folder = stored(run, played(run, seeded(4), INSPECTS[:10]), tmp_path / "runs" / "branch-1")
    was = next(one for one in chosen(folder, Which()) if one.turns == 3)
    (tmp_path / "recipe.toml").write_text(
        'name = "branch"\nmodel = "model"\nenvironment = "burnish/QualityInspection-v0"\nmulti_turn_rollouts = true\n'
        "[rollout]\nmax_turns = 3\nmax_tokens_per_turn = 8\n[engine]\nmax_context = 2048\n[rft]\nsteps = 1\n"
    )
    command = ["branch", str(folder), was.id, "--recipe", "recipe.toml", "--turn", "2", "-n", "3", "--model", "model", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "burnish", *command], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    first = [message.to_dict()["content"] for message in was.messages[:3]]
    assert row["parted"] is None and len(row["attempts"]) == 3
    assert all([message["content"] for message in one["messages"][:3]] == first for one in row["attempts"])
    assert all(one["failure"] is None and len(one["messages"]) > 3 for one in row["attempts"])
