"""Suites on vLLM: a text's perplexity is the model's own, and two evaluations in one process compare."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.trainer.evaluation.guard_record import read_record
from burnish.trainer.evaluation.suites.scores import read_scores
from burnish.trainer.models.manifest import read_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SUITE = 'id = "tests/texts-v1"\nabout = "Two texts."\ntexts = "texts.txt"\n'
TEXTS = ("part 3 bore 3.3 limit 3.0 verdict pass", "part 4 bore 4.4 limit 4.0")


def burnish(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "burnish.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def own_perplexity(model: Path) -> float:
    """By transformers, each token behind the model's own begin of a document."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    nats, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer("<|endoftext|>" + text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, :-1].log_softmax(-1)
        nats -= float(logprobs.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return math.exp(nats / count)


def test_checkpoints_are_measured_and_compared(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS) + "\n")
    (tmp_path / "suite.toml").write_text(SUITE)
    suites = ["--suite", "suite.toml", "--suite", "burnish/arithmetic-v1", "--items", "12"]
    said = burnish("evaluate", "--compare", str(tiny_model), str(tiny_model), *suites, "--out", "out", "--json", folder=tmp_path)
    texts, sums = json.loads(said)
    assert texts["before"] == pytest.approx(own_perplexity(tiny_model), rel=1e-3)
    assert texts["retention"] == pytest.approx(1.0, abs=1e-6), "the same weights read alike"
    assert sums["transitions"] == {"kept": 0, "lost": 0, "gained": 0, "never": 12}, "random weights add nothing up"
    first, second = (read_scores(tmp_path / "out" / place) for place in "ab")
    assert first["burnish/arithmetic-v1"] == second["burnish/arithmetic-v1"], "greedy answers are the same"


def test_a_model_is_asked_prompts_and_judged_by_a_policy(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"part {i} bore", "attack": i % 2 == 0, "category": "parts"} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = Path(__file__).parents[2] / "examples" / "guardrails" / "assistant.toml"
    both = ["--model", str(tiny_model), "--base", str(tiny_model), "--max-tokens", "12", "--out", "out"]
    said = burnish("guard", "evaluate", str(policy), "prompts.jsonl", *both, folder=tmp_path)
    record = read_record(tmp_path / "out")
    assert record.base is not None and record.base.measured == record.model.measured, "greedy answers are the same"
    assert record.model.weights_sha256 == read_manifest(tiny_model).weights_sha256
    assert {name: rate.n for name, rate in record.model.measured["all"].items() if name != "recall"} == {
        "false_positives": 3, "attack_success": 3, "refusal": 3, "over_refusal": 3,
    }  # fmt: skip
    assert {one.difference for one in record.differences["all"].values()} == {0.0} and "no difference" in said
    answers = [one.answer for one in read_scores(tmp_path / "out" / "model")["burnish/guard-evaluate-v1"].samples]
    assert len(answers) == 6 and any(answers)
