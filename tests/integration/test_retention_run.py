"""A run with a gate: a phase that reads one sentence over and over loses others, and its checkpoint is not promoted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from burnish.rollout.store.records import read_retention
from burnish.run.suites import compare_folders
from burnish.trainer.models.checkpoints import latest
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.manifest import read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SUITE = 'id = "tests/notes-v1"\nabout = "Notes."\ntexts = "notes.txt"\n'
RECIPE = """
name = "kept"
model = "{model}"
environment = "burnish/Arithmetic-v0"
evaluation = {{ tasks = 4, greedy = false, after = false }}
engine = {{ max_context = 128, kv_cache_mb = 32 }}
rollout = {{ max_tokens_per_turn = 8 }}

[cpt]
steps = 12
batch = 4
lr = 1e-2
data = "one.txt"

[retention]
suites = ["suite.toml", "burnish/choices-v1"]
items = 6
"""


def burnish(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "burnish.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    return done.stdout


def test_a_phase_that_forgets_is_kept_and_not_promoted(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("\n\n".join(f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0 verdict pass" for i in range(6)))
    (tmp_path / "one.txt").write_text("xxxx yyyy xxxx yyyy xxxx yyyy xxxx yyyy\n\n" * 4)
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(model=tiny_model))
    said = burnish("run", "recipe.toml", "--run-dir", "run", folder=tmp_path)
    run = tmp_path / "run"
    texts, choices = read_retention(run / "retention.jsonl")
    assert (texts.suite, texts.phase, texts.step, texts.items) == ("tests/notes-v1", "cpt", 12, 6)
    assert texts.retention is not None and texts.retention < 0.95 and texts.floor_retention == pytest.approx(1.0, abs=1e-6)
    assert choices.retention is None and choices.not_promoted == "", "random weights had no skill to lose"
    assert texts.kl == choices.kl and texts.kl is not None and texts.kl > 0.01, "it says other things on its own task, too"
    assert "checkpoint cpt-12 is kept and not promoted: it lost tests/notes-v1" in said
    checkpoint = latest(run)
    assert checkpoint is not None and read_manifest(checkpoint.model(run)).not_promoted == checkpoint.not_promoted == texts.not_promoted
    assert "The checkpoint after cpt is kept and not promoted" in (run / "report.html").read_text()
    with pytest.raises(ValueError, match="promoted no checkpoint"):
        find_model(run)
    changes = {one.suite: one for one in compare_folders(run / "suites" / "base", run / "suites" / "cpt")}
    assert changes["tests/notes-v1"].after == texts.after, "the samples stay, to be compared"
