"""A loop of one's own over `burnish.session`, run as its user would: real engine, learner and Ray."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.trainer.models.folder import check_model_folder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).parent / "digit_reward.py"

RECIPE = """
name = "own-loop"
model = "{model}"
environment = "burnish/Arithmetic-v0"
environment_weight = 0.0
reward_function = "tests/digits-v1"
plugins = ["{plugin}"]
success = "digits"
seed = 5
rft = {{ steps = 10, groups_per_step = 8, group_size = 8, lr = 1e-2 }}
rollout = {{ max_tokens_per_turn = 8, concurrency = 32 }}
engine = {{ max_context = 128, max_num_seqs = 32 }}
evaluation = {{ tasks = 64 }}

[cpu.engine]
kv_cache_mb = 32
"""


def test_a_loop_of_ones_own_trains_the_policy(tiny_model: Path, tmp_path: Path) -> None:
    assert len((ROOT / "examples" / "own_loop.py").read_text().splitlines()) <= 120
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tiny_model, plugin=PLUGIN))
    command = [sys.executable, str(ROOT / "examples" / "own_loop.py"), str(recipe), "--save", str(tmp_path / "trained")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^step \d+: reward", done.stdout, re.MULTILINE)) == 10, done.stdout
    ends = re.search(r"success on 64 held-out tasks: ([\d.]+)% before, ([\d.]+)% after", done.stdout)
    assert ends is not None and float(ends[2]) > float(ends[1]) + 10, done.stdout
    check_model_folder(tmp_path / "trained")
