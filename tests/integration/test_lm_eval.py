"""lm-eval asks a model that burnish serves, on rows of its own, and finds what the weights say; without lm-eval there is nothing to ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.started import Started
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not beside this environment: docs/evaluate.md says how"),
]

TEXTS = ("part one is within its limit", "measure the bore of part two", "scrap it")
CHOICES: list[dict[str, Any]] = [
    {"question": "verdict of part one:", "choices": ["pass", "scrap it", "measure"], "answer": 0},
    {"question": "the bore of part two is", "choices": ["one", "within its limit", "two two"], "answer": 1},
]
TASK = """task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{asked}"
doc_to_target: "{target}"
{more}
metric_list:
  - metric: {metric}
"""


def write_tasks(folder: Path) -> None:
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    texts = TASK.format(
        name="texts",
        file=folder / "texts.jsonl",
        kind="loglikelihood_rolling",
        asked="",
        target="{{text}}",
        more="",
        metric="word_perplexity",
    )
    choices = TASK.format(
        name="choices", file=folder / "choices.jsonl", kind="multiple_choice", asked="{{question}}", target="{{answer}}",
        more='doc_to_choice: "{{choices}}"', metric="acc",
    )  # fmt: skip
    (folder / "texts.yaml").write_text(texts)
    (folder / "choices.yaml").write_text(choices)


def test_lm_eval_finds_what_the_weights_say(tiny_model: Path, start: Callable[..., Started], tmp_path: Path) -> None:
    write_tasks(tmp_path)
    served = start("serve", str(tiny_model), "--port", "0", "--name", "tiny")
    served.until_said("(Ctrl-C stops it)")
    found = re.search(r"serving tiny at (\S+)", served.said)
    assert found is not None
    args = f"model=tiny,base_url={found[1]}/completions,tokenizer_backend=huggingface,tokenizer={tiny_model},max_length=256"
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", args, "--include_path", str(tmp_path), "--tasks",
        "local_texts,local_choices", "--batch_size", "4", "--log_samples", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    of_texts, of_choices = samples(tmp_path / "out", "local_texts"), samples(tmp_path / "out", "local_choices")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    begin = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    for row, text in zip(of_texts, TEXTS, strict=True):
        assert float(row["filtered_resps"][0]) == pytest.approx(nats(model, begin, ids(tokenizer, text)), abs=1e-3)
    for row, asked in zip(of_choices, CHOICES, strict=True):
        question = ids(tokenizer, asked["question"])
        for response, choice in zip(row["filtered_resps"], asked["choices"], strict=True):
            rest = ids(tokenizer, f"{asked['question']} {choice}")[len(question) :]
            assert float(response[0]) == pytest.approx(nats(model, question, rest), abs=1e-3)


def samples(folder: Path, task: str) -> list[Any]:
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def nats(model: Any, before: list[int], tokens: list[int]) -> float:
    """The log-probability of tokens behind others."""
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *tokens]])).logits[0, len(before) - 1 : -1]
    return float(logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)].sum())
