"""Adapters on their way to an engine, alone beside merged: bytes, and seconds at the learner and the engine, without vLLM's own loading.

`python -m benchmarks.bench_adapters` prints a table (a minute). The model has the shapes of SmolLM2-135M and random weights; learner,
buckets, checksums and merging are the real ones, on one thread.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.rollout.engine.layout import checksum
from burnish.rollout.transport.adapters import Base
from burnish.rollout.transport.buckets import Bucket
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig
from burnish.trainer.learner.learner import Learner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHAPES = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                     num_key_value_heads=3, tie_word_embeddings=True)  # fmt: skip
ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(folder: Path, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Medians over rounds by what is sent: of the learner's seconds, and of the engine's, both with the checksums that they make."""
    torch.set_num_threads(1)
    LlamaForCausalLM(SHAPES).save_pretrained(folder)
    learner, base = Learner(folder, LearnerConfig(threads=1, lora=LoRAConfig()), 0), Base(folder, "float32")
    frozen, found = learner.frozen(), dict[str, list[tuple[float, float]]]()
    base.check(frozen)
    for _ in range(rounds):
        whole = [Bucket(one.spans, one.data.copy()) for one in learner.buckets("float32")]
        alone = {name: array.copy() for one in learner.adapters() for name, array in one.tensors()}
        sizes = sum(one.data.nbytes for one in whole) / 1e6, sum(array.nbytes for array in alone.values()) / 1e6
        merged = seconds(lambda: [one.manifest() for one in learner.buckets("float32")])
        adapters = seconds(lambda: [one.manifest() for one in learner.adapters()])
        taken = seconds(lambda: [checksum(array) for one in whole for _, array in one.tensors()])  # noqa: B023
        merging = seconds(lambda: [checksum(array) for _, array in base.merged(frozen, alone)])  # noqa: B023
        found.setdefault(f"merged, {sizes[0]:.0f} MB", []).append((merged, taken))
        found.setdefault(f"alone, {sizes[1]:.1f} MB", []).append((adapters, merging))
    return {name: (statistics.median(a for a, _ in each), statistics.median(b for _, b in each)) for name, each in found.items()}


def test_adapters_alone_take_fewer_bytes_and_less_of_the_learners_time(tmp_path: Path) -> None:
    merged, alone = measured(tmp_path).items()
    assert alone[1][0] < merged[1][0]
    assert float(alone[0].split()[1]) * 10 < float(merged[0].split()[1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        rows = measured(Path(made))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}, median of {ROUNDS} rounds")
    print("| sent | the learner, s | an engine but for vLLM's loading, s |\n|---|---|---|")
    for name, (sender, taker) in rows.items():
        print(f"| {name} | {sender:.2f} | {taker:.2f} |")
