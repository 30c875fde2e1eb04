"""A run on tasks out of files: which rows train, in which order, which are measured, and what a changed file means for a resumption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.inspector.runs import read_run_transcripts
from burnish.rollout.store.records import read_ledger

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

HANDLER = Path(__file__).parent / "lambda_target.py"
RECIPE = """
name = "rows"
model = "{model}"
environment = "burnish/SingleTurn-v0"
environment_weight = 0.0
success = "openai-grader"
tasks = {{ train = "{folder}/train.jsonl", held_out = "{folder}/held_out.jsonl" }}
rft = {{ steps = 2, groups_per_step = 2, group_size = 2, lr = 1e-4, max_refills = 0 }}
rollout = {{ max_tokens_per_turn = 12 }}
engine = {{ max_context = 256, kv_cache_mb = 32 }}
evaluation = {{ before = false, greedy = false }}
resources = {{ object_store_mb = 128 }}

[[rewards]]
use = "burnish/openai-grader-v1"

[rewards.args.grader]
type = "text_similarity"
name = "close"
evaluation_metric = "fuzzy_match"
input = "{{{{sample.output_text}}}}"
reference = "{{{{item.reference_answer}}}}"

[[rewards]]
use = "burnish/reward-lambda-v1"
args = {{ handler = "{handler}:lambda_handler", chunk = 2 }}
"""


def rows(name: str, first: int, count: int) -> str:
    made = [{"role": "user", "content": f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0"} for i in range(first, first + count)]
    lines = [{"id": f"{name}{i}", "messages": [message], "reference_answer": "verdict pass"} for i, message in enumerate(made)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def burnish(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "burnish.cli.main", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)


def test_a_run_trains_on_one_file_and_measures_the_other(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "train.jsonl").write_text(rows("r", 0, 3))
    (tmp_path / "held_out.jsonl").write_text(rows("h", 3, 4))
    recipe, run = tmp_path / "rows.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(model=tiny_model, folder=tmp_path, handler=HANDLER))
    done = burnish(str(recipe), "--run-dir", str(run))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    transcripts = list(read_run_transcripts(run))
    trained = {t.task: t for t in transcripts if t.split == "train"}
    assert sorted(id.partition(":")[0] for id in trained) == ["train-0", "train-1", "train-2", "train-3"]
    order = [trained_id.partition(":")[2] for trained_id in sorted(trained)]
    assert sorted(order[:3]) == ["r0", "r1", "r2"], "every row once before one comes again"
    measured = [t for t in transcripts if t.split == "heldout"]
    assert sorted(t.task for t in measured) == [f"heldout-h{i}" for i in range(4)]
    for transcript in transcripts:
        assert [message["role"] for message in transcript.messages] == ["user", "assistant"], "the row's prompt, once, and one answer"
        assert transcript.reward is not None
        assert {"openai-grader", "reward-lambda", "reward-lambda.accuracy"} <= set(transcript.reward.parts)
    assert all(row.missing == 0 and row.carried == 0 for row in read_ledger(run / "ledger.jsonl"))

    (tmp_path / "train.jsonl").write_text(rows("r", 0, 2))
    again = burnish(str(run), "--resume", "--set", "rft.steps=3")
    assert again.returncode == 2
    assert "the files of [tasks] are not what they were when it was trained; restore them" in again.stderr
