"""A whole run as a user starts it: interrupted, resumed, and everything it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from burnish.envs.builtin.inspection.corpus import vocabulary
from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.records import read_evaluations, read_ledger
from burnish.trainer.models.checkpoints import list_checkpoints, save_checkpoint
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

RECIPE = """
name = "small"
model = "{model}"
environment = "burnish/QualityInspection-v0"
environment_args = {{ level = 0, tools = "service:shop-floor", instructions = false }}
environment_weight = 0.0
multi_turn_rollouts = true
success = "verdict.correct"
seed = 1

[[rewards]]
verifier = "service:verdicts"
name = "verdict"

[[rewards]]
use = "burnish/inspection-cost-v1"
name = "cost"
weight = 0.2

[services.shop-floor]
tools = "burnish.envs.builtin.inspection.service"

[services.verdicts]
verifier = "burnish.rewards.builtin.inspection:verdict"

[sft]
steps = 30
batch = 8
lr = 3e-3
checkpoint_every = 10
generate = "burnish.envs.builtin.inspection.corpus:logs"
args = {{ instructions = false }}
count = 40

[rft]
steps = 2
groups_per_step = 2
group_size = 4
lr = 1e-4

[rollout]
max_turns = 4
max_tokens_per_turn = 16
describe_tools = false

[engine]
max_context = 256
kv_cache_mb = 32

[evaluation]
tasks = 8
before = false

[resources]
object_store_mb = 128
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose tokenizer knows the words of the task."""
    folder = tmp_path_factory.mktemp("models") / "small"
    new_model(vocabulary(0, 300), folder, ModelSize(hidden=64, layers=2, heads=2, intermediate=128, vocab_size=400, max_position=256))
    return folder


def start(arguments: list[str], log: Path, folder: Path | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "burnish.cli.main", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, cwd=folder)


def wait_for_step(run: Path, phase: str, step: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        file = run / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        if any(row["phase"] == phase and row["step"] >= step for row in rows):
            return
        time.sleep(0.2)
    raise AssertionError(f"{phase} step {step} was not reached: {log.read_text()[-3000:]}")


def left_behind(parent: int, children: list[psutil.Process]) -> list[str]:
    """Processes of the run that are still alive a while after it ended."""
    _, alive = psutil.wait_procs(children, timeout=120)
    return [" ".join(process.cmdline())[:120] for process in alive if process.is_running() and process.pid != parent]


def test_a_run_is_interrupted_leaves_nothing_and_resumes_where_it_was(tmp_path: Path, model: Path) -> None:
    recipe, run, log = tmp_path / "small.toml", tmp_path / "run", tmp_path / "log"
    recipe.write_text(RECIPE.format(model=model))

    first = start(["run", str(recipe), "--run-dir", str(run)], log)
    wait_for_step(run, "sft", 12, first, log)
    children = psutil.Process(first.pid).children(recursive=True)
    os.killpg(first.pid, signal.SIGINT)  # what Ctrl-C sends: to every process of the terminal's group
    assert first.wait(timeout=180) == 130, log.read_text()[-3000:]
    assert f"burnish run {run} --resume" in log.read_text()
    assert left_behind(first.pid, children) == []
    assert [record.name for record in list_checkpoints(run)] == ["sft-10"]
    assert not list((run / "checkpoints").glob(".*")), "no half-written checkpoint"

    second = start(["run", str(run), "--resume"], log)
    assert second.wait(timeout=900) == 0, log.read_text()[-3000:]
    shown = log.read_text()
    assert "resumed from sft-10" in shown
    assert "after sft-10, the latest checkpoint: what follows" in shown and "steps 11 to 30 of: " in shown, "the plan is of what is left"
    assert "left (rft " in shown and "evaluation " in shown, "the first evaluation says how long the rest takes"
    steps = [(row["phase"], row["step"]) for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    assert steps == [("sft", i) for i in range(1, 31)] + [("rft", 1), ("rft", 2)]
    assert [(r.phase, r.result.mode) for r in read_evaluations(run / "evaluations.jsonl")] == [
        (phase, mode) for phase in ("sft", "rft") for mode in ("sampled", "greedy")
    ]
    assert all(row.missing == 0 and row.carried == 0 for row in read_ledger(run / "ledger.jsonl"))
    assert {t.split for t in read_run_transcripts(run)} == {"train", "heldout"}
    assert {"config.json", "versions.json", "seeds.json", "recipe.toml", "report.html"} <= {file.name for file in run.iterdir()}

    # as if it had been interrupted between the last two evaluations
    rows = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text("".join(rows[:-1]))
    third = start(["run", str(run), "--resume"], log)
    assert third.wait(timeout=600) == 0, log.read_text()[-3000:]
    assert [(row["phase"], row["step"]) for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] == steps
    assert [(r.phase, r.result.mode) for r in read_evaluations(run / "evaluations.jsonl")] == [
        (phase, mode) for phase in ("sft", "rft") for mode in ("sampled", "greedy")
    ]


def test_an_unreachable_verifier_is_one_line_and_a_code(tmp_path: Path, model: Path) -> None:
    recipe = tmp_path / "down.toml"
    text = RECIPE.format(model=model).replace('verifier = "burnish.rewards.builtin.inspection:verdict"', 'address = "127.0.0.1:9"')
    recipe.write_text(text[: text.index("[sft]")] + text[text.index("[rft]") :])
    done = subprocess.run(
        [sys.executable, "-m", "burnish.cli.main", "run", str(recipe), "--run-dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: verifier 'verdict' at 127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_latest_checkpoint_of_a_run_is_measured(tmp_path: Path, model: Path) -> None:
    recipe, run, log = tmp_path / "small.toml", tmp_path / "run", tmp_path / "log"
    recipe.write_text(RECIPE.format(model=model))
    for step in (1, 2):
        save_checkpoint(
            run, "rft", step, write_model=lambda folder: shutil.copytree(model, folder), write_trainer_state=lambda folder: folder.mkdir()
        )
    process = start(["evaluate", str(run), str(recipe), "--set", "evaluation.tasks=4", "--set", "evaluation.greedy=false"], log, tmp_path)
    assert process.wait(timeout=900) == 0, log.read_text()[-3000:]
    (made,) = (tmp_path / "runs").glob("small-evaluation-*")
    assert json.loads((made / "config.json").read_text())["model"] == str((run / "checkpoints" / "rft-2" / "model").resolve())
    assert [(r.phase, r.result.mode, r.result.episodes) for r in read_evaluations(made / "evaluations.jsonl")] == [("base", "sampled", 4)]
