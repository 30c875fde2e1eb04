"""How fast the learner is on a device, how much of the device's arithmetic it uses, and whether it takes the memory that a plan expects.

    python -m benchmarks.bench_learner [--device cuda] [--dtype bfloat16] [--model 1b] [--microbatch-tokens 4096 16384 …] [--write docs/…]

A random Llama, groups of answers to a prompt that they share, and GRPO's update of them: scoring what was sampled, the loss, the gradient
and AdamW. "Share of peak" is the arithmetic that an update cannot do without (products with the weights, attention scores, the logits of
what is trained, each once forward and twice backward, on the packed tokens) over what one large matrix product does per second on the same
device and dtype in the same run. "Necessary" leaves out what activation checkpointing would compute again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.packing import make_groups
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.recipe.sizes import ModelFacts, learner_bytes, model_facts
from burnish.trainer.batch import GroupBatch, TokenBatch
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.packing import microbatches
from burnish.trainer.objectives.advantages import grpo
from burnish.trainer.objectives.objective import Objective


@dataclass(frozen=True)
class Work:
    """A model, and a batch: `groups` prompts of `prompt` tokens with `samples` answers of `answer` each, two thirds of them trained."""

    model: LlamaConfig
    groups: int
    samples: int
    prompt: int
    answer: int


def _llama(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, tie_word_embeddings=True, max_position_embeddings=8192,
    )  # fmt: skip


WORK = {
    "nano": Work(_llama(1000, 256, 768, 4, 8, 8), 4, 8, 64, 60),
    "0.5b": Work(_llama(49152, 1280, 3456, 24, 20, 5), 32, 8, 512, 510),
    "1b": Work(_llama(128256, 2048, 8192, 16, 32, 8), 32, 8, 512, 510),
}


@dataclass(frozen=True)
class Measured:
    """seconds: of an update, its step included. packed, trained: tokens of the batch. flops: of what it cannot do without.
    memory, expected: bytes at most on the device, and what a plan says."""

    microbatch_tokens: int
    attention: str
    seconds: float
    step_seconds: float
    packed: int
    trained: int
    flops: float
    memory: int
    expected: int


def seconds_of(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product, median of ten."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    found = []
    for _ in range(13):
        started = seconds_of(device)
        a @ b
        found.append(seconds_of(device) - started)
    return 2 * size**3 / statistics.median(found[3:])


def necessary(model: ModelFacts, batch: TokenBatch, microbatch_tokens: int) -> tuple[float, int]:
    """Operations of forward and backward, and packed tokens."""
    pairs = packed = 0
    for one in microbatches(batch.sequences, batch.masks, microbatch_tokens):
        packed += len(one.token_ids)
        pairs += sum(s.length * s.context + s.length * (s.length + 1) // 2 for s in one.segments)
    body = 2 * (model.parameters - model.embedding) * packed
    attention = 4 * pairs * model.heads * model.head_dim * model.layers
    return 3.0 * (body + attention + 2 * model.embedding * batch.tokens), packed


def measure(learner: Learner, facts: ModelFacts, batch: TokenBatch, repeats: int) -> Measured:
    device = learner.policy.device
    times = []
    for repeat in range(repeats + 1):  # the first warms up, and makes the optimizer's state
        if repeat == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = seconds_of(device)
        learner.forward_backward(batch, Objective())
        passed = seconds_of(device)
        learner.step()
        times.append((seconds_of(device) - started, seconds_of(device) - passed))
    flops, packed = necessary(facts, batch, learner.policy.microbatch_tokens)
    return Measured(
        learner.policy.microbatch_tokens,
        "flash" if learner.policy.ragged else "padded",
        statistics.median(each[0] for each in times[1:]),
        statistics.median(each[1] for each in times[1:]),
        packed,
        batch.tokens,
        flops,
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        learner_bytes(facts, learner.config, reference=False),
    )


def measured_alone(path: Path, config: LearnerConfig, facts: ModelFacts, batch: TokenBatch, repeats: int, padded: bool) -> Measured:
    """Of a learner that is gone afterwards."""
    learner = Learner(path, config, seed=0)
    learner.policy.ragged = learner.policy.ragged and not padded
    found = measure(learner, facts, batch, repeats)
    del learner
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def table(found: Sequence[Measured], rate: float) -> str:
    lines = [
        "| microbatch tokens | attention | update, s | AdamW's step, s | packed tokens/s | trained tokens/s | share of peak "
        "| GB | GB expected |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        lines.append(
            f"| {one.microbatch_tokens} | {one.attention} | {one.seconds:.2f} | {one.step_seconds:.3f} | {one.packed / one.seconds:,.0f} "
            f"| {one.trained / one.seconds:,.0f} | {one.flops / one.seconds / rate:.1%} "
            f"| {one.memory / 1e9:.1f} | {one.expected / 1e9:.1f} |"
        )
    return "\n".join(lines)


def snapshot_seconds(learner: Learner) -> tuple[float, int]:
    """Of making all buckets in bfloat16 on the host, the second time, and their bytes."""
    took, size = 0.0, 0
    for _ in range(2):
        started, size = seconds_of(learner.policy.device), 0
        for bucket in learner.buckets("bfloat16"):
            size += bucket.data.nbytes
        took = seconds_of(learner.policy.device) - started
    return took, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--model", choices=WORK, default="1b" if torch.cuda.is_available() else "nano")
    parser.add_argument("--microbatch-tokens", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--logit-rows", type=int, default=512)
    parser.add_argument("--padded", action="store_true", help="in 16 bit on CUDA: padded attention too, at the first size")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device, work = torch.device(options.device), WORK[options.model]
    rate = peak(device, getattr(torch, options.dtype))
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, PyTorch {torch.__version__}, {options.dtype}, "
          f"a matrix product: {rate / 1e12:.1f} TFLOP/s")  # fmt: skip
    groups = GroupBatch(tuple(make_groups(work.groups, work.samples, work.prompt, work.answer, work.model.vocab_size)))
    batch = groups.train(grpo(groups))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with torch.device(device):
            torch.manual_seed(0)
            LlamaForCausalLM(work.model).save_pretrained(path)
        facts, found = model_facts(path), []
        sizes: list[tuple[int, bool]] = [(size, False) for size in options.microbatch_tokens]
        if options.padded:
            sizes.insert(0, (options.microbatch_tokens[0], True))
        for size, padded in sizes:
            config = LearnerConfig(
                device=options.device, dtype=options.dtype, microbatch_tokens=size, logit_rows=options.logit_rows,
                threads=torch.get_num_threads(),
            )  # fmt: skip
            found.append(measured_alone(path, config, facts, batch, options.repeats, padded))
            print(f"{size} {'padded' if padded else ''}: {found[-1].seconds:.2f} s", flush=True)
        took, size = snapshot_seconds(Learner(path, LearnerConfig(device=options.device, dtype=options.dtype), seed=0))
    print(f"\n{facts.parameters / 1e6:,.0f} M parameters; {work.groups} groups of {work.samples} answers of {work.answer} tokens to "
          f"prompts of {work.prompt}; median of {options.repeats} updates; {options.logit_rows} logit rows\n")  # fmt: skip
    print(table(found, rate))
    print(f"\nAll weights in buckets of bfloat16 on the host: {took:.2f} s for {size / 1e9:.2f} GB, {size / took / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
