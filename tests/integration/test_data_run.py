"""A blended phase of a real run, killed in the middle and resumed: the rows of every step are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from burnish.trainer.data.prepared import PreparedData

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = """
name = "blended"
model = "{model}"
environment = "burnish/Arithmetic-v0"
seed = 5

[cpt]
steps = 3
batch = 4
own = "{notes}"
blend_ratio = 0.5
curated = "burnish/general-v1"

[sft]
steps = 24
batch = 8
checkpoint_every = 5
own = "{talks}"
blend_ratio = 0.75
curated = "burnish/general-v1"
max_rejects = 1

[rollout]
max_tokens_per_turn = 8

[engine]
max_context = 250
kv_cache_mb = 32

[evaluation]
tasks = 2
before = false
greedy = false

[resources]
object_store_mb = 128
"""
FINISH_S = 600.0


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "burnish", *arguments], stdout=out, stderr=out, start_new_session=True)


def rows_of(run: Path, phase: str, steps: int) -> list[tuple[str, int, str]]:
    data = PreparedData(run / "data" / phase)
    rows = [(drawn.source, drawn.epoch, drawn.where) for step in range(steps) for drawn in data.drawn(step)]
    data.close()
    return rows


def metrics(run: Path, phase: str) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [row for row in rows if row["phase"] == phase]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + FINISH_S
    while not any(row["step"] >= step for row in metrics(run, "sft")):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def test_a_blended_run_is_killed_twice_and_has_the_rows_of_one_that_was_not(tmp_path: Path, tiny_model: Path) -> None:
    notes, talks, recipe = tmp_path / "notes.txt", tmp_path / "talks.jsonl", tmp_path / "recipe.toml"
    notes.write_text("\n\n".join(f"part {i} bore {i % 7}" for i in range(9)))
    pairs = [[{"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": str(i + 1)}] for i in range(30)]
    talks.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in pairs) + "not a row\n")
    recipe.write_text(RECIPE.format(model=tiny_model, notes=notes, talks=talks))

    whole, log = tmp_path / "whole", tmp_path / "log"
    assert start(["run", str(recipe), "--run-dir", str(whole)], log).wait(FINISH_S) == 0, log.read_text()[-3000:]
    said = " ".join(log.read_text().split())  # a table wraps where it must
    assert "blended by samples: 75.00% own" in said and "31 rows" not in said
    assert "sft blend, own: 75.00% of 192 samples" in said and "(75.00% of samples asked for)" in said

    run = tmp_path / "killed"
    process = start(["run", str(recipe), "--run-dir", str(run)], log)
    for step in (7, 16):
        wait_for_step(run, step, process, log)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        talks.write_text(talks.read_text() + json.dumps({"messages": pairs[0]}) + "\n")  # what was laid out stays what it is
        process = start(["run", str(run), "--resume"], log)
    assert process.wait(FINISH_S) == 0, log.read_text()[-3000:]

    for phase, steps in (("cpt", 3), ("sft", 24)):
        assert rows_of(run, phase, steps) == rows_of(whole, phase, steps)
    assert [row["step"] for row in metrics(run, "sft")] == list(range(1, 25))
    for key in ("blend/own", "blend_tokens/own", "blend_tokens/refusal", "tokens", "rejected_rows"):
        assert [row[key] for row in metrics(run, "sft")] == [row[key] for row in metrics(whole, "sft")], key
    assert [row["loss"] for row in metrics(run, "sft")] == pytest.approx([row["loss"] for row in metrics(whole, "sft")], rel=1e-3)
    assert metrics(run, "sft")[-1]["blend/own"] == 0.75 and metrics(run, "sft")[-1]["rejected_rows"] == 1.0
    (reject,) = [row for row in map(json.loads, (run / "data/sft/rejects.jsonl").read_text().splitlines()) if row["source"] == "own"]
    assert (reject["file"], reject["line"]) == (str(talks), 31)
    assert "asked" in (run / "report.html").read_text()

    traced = subprocess.run(
        [sys.executable, "-m", "burnish", "data", "trace", str(run), "9"], capture_output=True, text=True, timeout=200, check=True
    )
    assert "sft step 9: positions 64 to 71 of the blend" in traced.stdout and f"{talks}:" in traced.stdout
