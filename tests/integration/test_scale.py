"""`burnish runs scale` on a run of `burnish run`, which is killed meanwhile and resumed. The engine is a script, Ray and learner are
real."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.faults import FOLDER
from tests.integration.started import Started, last_step
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.rollout.store.json_lines import read_json_lines
from burnish.rollout.store.records import read_ledger

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RECIPE = """
name = "scaled"
model = "{model}"
environment = "burnish/Arithmetic-v0"
plugins = ["{plugin}"]

[rft]
steps = 100_000
groups_per_step = 4
group_size = 4
lr = 1e-3
equal_groups = "keep"
rollouts = "async"
checkpoint_every = 1000

[rollout]
max_tokens_per_turn = 16
concurrency = 4

[engine]
max_context = 256

[evaluation]
before = false

[resources]
cpus = 3
object_store_mb = 128
"""


def scale(run: Path, engines: int) -> str:
    found = CliRunner().invoke(app, ["runs", "scale", str(run), "--engines", str(engines)])
    assert found.exit_code == 0, found.output
    return found.stdout


def engines(run: Path) -> float:
    """Those that the last step handed its weights to."""
    rows = [row for _, row in read_json_lines(run / "metrics.jsonl")] if last_step(run) else []
    return float(rows[-1]["engines"]) if rows else 0.0


def test_a_run_gets_more_engines_and_fewer_and_a_resumed_one_those_that_were_asked_for(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "no-faults"))
    run, recipe = tmp_path / "run", tmp_path / "scaled.toml"
    recipe.write_text(RECIPE.format(model=tiny_model, plugin=Path(__file__).with_name("fault_plugin.py")))
    now = start("run", str(recipe), "--run-dir", str(run))
    now.until(lambda: engines(run) == 1, "a step")
    assert scale(run, 2) == f"{run} is asked to have 2 engines, and says so at the end of its step\n"
    now.until(lambda: engines(run) == 2, "a second engine")
    assert "engines: 2 asked for, 1 there; others join where the cluster has room" in now.said
    assert "rollout-2 has joined: 2 engines" in now.said
    now.end(signal.SIGKILL)
    assert scale(run, 2) == f"no process is seen to drive {run}; it begins with 2 engines once it is resumed\n"

    now = start("run", str(run), "--resume")
    now.until_said("resumed from the beginning of training")
    now.until(lambda: engines(run) == 2, "the second engine again")
    scale(run, 1)
    now.until(lambda: engines(run) == 1, "one engine alone")
    assert "rollout-2 has left, since fewer are asked for: 1 engine" in now.said
    code, left = now.end(signal.SIGINT)
    assert (code, left) == (130, [])
    last = read_ledger(run / "ledger.jsonl")[-1]
    assert not last.masked and not last.dropped and last.trained == 16 * last.step, "nothing was lost"
