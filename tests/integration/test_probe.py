"""`burnish probe` over the real pieces: Ray, vLLM, a tool service, a verifier and the learner; and interrupted in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.integration.test_pipeline import RECIPE, left_behind, start

from burnish.envs.builtin.inspection.corpus import vocabulary
from burnish.inspector.runs import read_run_transcripts
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    size = ModelSize(hidden=64, layers=2, heads=2, intermediate=128, vocab_size=400, max_position=256)
    new_model(vocabulary(0, 300), folder / "model", size)
    file = folder / "small.toml"
    file.write_text(RECIPE.format(model=folder / "model"))
    return file


def test_a_probe_says_what_training_would_find(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "burnish.cli.main", "probe", str(recipe), "--episodes", "32", "--run-dir", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said == json.loads((run / "probe.json").read_text())
    seen = said["seen"]
    assert (seen["episodes"], seen["groups"], seen["group_size"]) == (32, 8, 4)
    assert seen["sampled"]["value"] == 0.0 and seen["pass_at"] == {"1": 0.0, "2": 0.0, "4": 0.0}, "random weights know nothing"
    assert seen["latencies"].keys() == {"engine", "environment", "verifier"}
    assert said["again"]["episodes"] == 32 and said["again"]["changed"] == said["again"]["other_answers"] == 0
    assert said["lines"][0]["weight"] == "stop" and said["lines"][0]["text"].startswith("SFT first")
    assert any("the policy before sft" in line["text"] for line in said["lines"])
    assert said["peak_mb"]["learner"] > 100 and said["peak_mb"]["engine"] > 100
    modes = [transcript.mode for transcript in read_run_transcripts(run)]
    assert (modes.count("sampled"), modes.count("greedy")) == (32, 8)
    assert not (run / "checkpoints.jsonl").exists()


def test_a_probe_with_a_critic_makes_its_update(recipe: Path, tmp_path: Path) -> None:
    sets = ["--set", "rft.algorithm=ppo", "--set", "rft.minibatches=1"]
    run = ["--episodes", "8", "--run-dir", str(tmp_path / "run"), "--json"]
    command = [sys.executable, "-m", "burnish.cli.main", "probe", str(recipe), *sets, *run]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["update"]["groups"] == 2 and said["cost"]["seconds"] > 0


def test_an_interrupted_probe_leaves_nothing(recipe: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(["probe", str(recipe), "--run-dir", str(run), "--episodes", "4000"], log)
    deadline = time.monotonic() + 300
    while "probe, sampled" not in log.read_text():  # a bar's first line comes after some seconds of playing
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert run.is_dir() and children
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130, log.read_text()[-3000:]
    assert not left_behind(process.pid, children)
    assert not run.exists()
