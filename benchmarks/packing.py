"""How much faster is the packed learner? Forward and backward of one policy update, four ways, and the tokens each computes.

    python benchmarks/packing.py [--model nano|135m] [--threads 2] [--repeats 3]

padded: one row per trajectory through plain Hugging Face attention, logits everywhere. dense mask: packed like ours, with one
`[N, N]` mask and SDPA, logits where trainable. packed: what the learner does. update: a whole GRPO step of the learner.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.envs.types import Episode, EpisodeGroup, Reward, Task, Trajectory
from burnish.trainer.batch import GroupBatch, TokenBatch, plain_batch
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.packing import PackedBatch, pack, path_index
from burnish.trainer.objectives.advantages import grpo
from burnish.trainer.objectives.objective import Objective

NANO = LlamaConfig(
    vocab_size=1000, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8, tie_word_embeddings=True
)  # fmt: skip
SMALL = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    tie_word_embeddings=True,
)  # fmt: skip


def make_groups(groups: int, samples: int, prompt: int, continuation: int, vocab: int) -> list[EpisodeGroup]:
    """Random groups; continuations alternate between 20 sampled tokens and 10 of the environment."""
    rng = np.random.default_rng(0)
    turn = np.repeat([True, False], [20, 10])
    made = []
    for g in range(groups):
        task = Task(f"bench-{g}", g)
        shared = rng.integers(0, vocab, prompt)
        episodes = []
        for s in range(samples):
            ids = np.concatenate([shared, rng.integers(0, vocab, continuation)]).astype(np.int32)
            trainable = np.zeros(len(ids), np.bool_)
            trainable[prompt:] = np.resize(turn, continuation)
            logprobs = np.where(trainable, -np.log(vocab), 0).astype(np.float32)
            trajectory = Trajectory(ids, trainable, logprobs, np.where(trainable, 0, -1).astype(np.int32))
            episodes.append(Episode(task, s, (trajectory,), (), Reward(float(rng.random()))))
        made.append(EpisodeGroup(task, tuple(episodes)))
    return made


def padded(model: LlamaForCausalLM, batch: TokenBatch, rows: int = 16) -> int:
    ids = torch.from_numpy(np.stack(batch.sequences).astype(np.int64))
    mask = torch.from_numpy(np.stack(batch.masks))
    for start in range(0, len(ids), rows):
        piece = ids[start : start + rows]
        logits = model(input_ids=piece, use_cache=False).logits[:, :-1].float()
        logprobs = logits.log_softmax(-1).gather(-1, piece[:, 1:, None]).squeeze(-1)
        (-(logprobs * mask[start : start + rows, 1:]).sum() / batch.tokens).backward()
    return ids.numel()


def dense_mask(model: LlamaForCausalLM, batch: TokenBatch, packed: PackedBatch) -> int:
    n = len(packed.token_ids)
    allowed = torch.zeros(n, n, dtype=torch.bool)
    for i, segment in enumerate(packed.segments):
        keys = torch.from_numpy(path_index(packed.segments, (*segment.ancestors, i)))
        causal = torch.arange(len(keys))[None] <= segment.context + torch.arange(segment.length)[:, None]
        allowed[segment.start : segment.start + segment.length, keys] = causal
    mask = torch.zeros(n, n).masked_fill_(~allowed, -torch.inf)[None, None]
    ids, positions = torch.from_numpy(packed.token_ids)[None], torch.from_numpy(packed.position_ids)[None]
    hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state[0]
    logits = model.lm_head(hidden[torch.from_numpy(packed.hidden_index)]).float()
    logprobs = logits.log_softmax(-1).gather(-1, torch.from_numpy(packed.targets)[:, None])
    (-logprobs.sum() / batch.tokens).backward()
    return n


def update(learner: Learner, groups: list[EpisodeGroup]) -> int:
    batch = GroupBatch(tuple(groups))
    measured = learner.forward_backward(batch.train(grpo(batch)), Objective())
    learner.step()
    return measured.packed_tokens


def measure(run: Callable[[], int], repeats: int) -> tuple[float, int]:
    """Best seconds of `repeats` after one warm-up, and tokens computed."""
    tokens, best = run(), float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["nano", "135m"], default="nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--microbatch-tokens", type=int, default=4096)
    options = parser.parse_args()
    nano = options.model == "nano"
    config = NANO if nano else SMALL
    groups = make_groups(16 if nano else 2, 8, 60, 90, config.vocab_size)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        plain = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
        learner = Learner(Path(folder), LearnerConfig(threads=options.threads, microbatch_tokens=options.microbatch_tokens), seed=0)
    trajectories = [episode.trajectories[0] for group in groups for episode in group.episodes]
    batch = plain_batch([(t.token_ids, t.trainable) for t in trajectories])
    # The dense mask grows with the square of the row: four groups at a time is kind to it.
    fours = [pack(batch.sequences, batch.masks, range(i, min(i + 32, len(trajectories)))) for i in range(0, len(trajectories), 32)]
    ways: dict[str, Callable[[], int]] = {
        "padded": lambda: padded(plain, batch),
        "dense mask": lambda: sum(dense_mask(plain, batch, packed) for packed in fours),
        "packed": lambda: learner.policy.accumulate(batch, lambda statistics, index: -statistics.logprobs.mean()).packed_tokens,
        "update": lambda: update(learner, groups),
    }
    size = plain.num_parameters() / 1e6
    print(f"{size:.1f} M parameters, {len(trajectories)} trajectories, {len(batch.mask)} tokens, {batch.tokens} trainable")
    base = 0.0
    for name, run in ways.items():
        seconds, tokens = measure(run, options.repeats)
        base = base or seconds
        print(
            f"{name:>10}: {seconds:7.2f} s  {tokens:6d} tokens computed  {tokens / seconds:7.0f} computed/s  "
            f"{len(batch.mask) / seconds:7.0f} trajectory tokens/s  {base / seconds:4.2f}x"
        )
    print(f"peak memory of all of these: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
