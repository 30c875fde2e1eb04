"""What each rank of a learner does in the tests: ten steps on its shares of the same batches.

Run as `python -m tests.integration.rank_targets RANK SIZE MODELS OUT CASES`.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.envs.types import Float32
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.learner.config import CriticConfig, LearnerConfig, LoRAConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.ranks import Ranks, join, leave, listen
from burnish.trainer.learner.shares import merged, shares
from burnish.trainer.objectives.losses import LossInputs, LossOutputs, per_sequence
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import CROSS_ENTROPY, Objective

VOCAB, STEPS, BREAK = 41, 10, 6
"""Steps are broken off after BREAK of them: the state is saved, and a new learner takes it over."""
WAIT_S = 500.0


def sequence_ratio(inputs: LossInputs) -> LossOutputs:
    """A loss that is not a sum over tokens: the ratio of whole sequences, as in GSPO (Zheng et al. 2025, arXiv 2507.18071)."""
    apart = inputs.logprobs - inputs.old_logprobs
    ratio = (apart - apart.detach() + per_sequence(apart, inputs.trajectory)).exp()
    return LossOutputs({"policy": -ratio * inputs.advantages}, {"ratio": ratio.detach()})


OBJECTIVES = {
    "supervised": CROSS_ENTROPY,
    "grpo": Objective("ppo_clip", kl_coef=0.1, entropy_coef=0.01),
    "sequence": Objective(sequence_ratio, aggregation="sequence", kl_coef=0.1, entropy_coef=0.01),
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "supervised": ("supervised", "tied", {}),
    "untied": ("supervised", "untied", {"activation_checkpointing": True}),
    "grpo": ("grpo", "tied", {}),
    "sequence": ("sequence", "tied", {}),
    "adapters": ("grpo", "tied", {"lora": LoRAConfig(rank=4, alpha=8)}),
    "critic": ("grpo", "tied", {}),
}
"""By name: the objective, the model's folder, and what else the learner is told."""


@dataclasses.dataclass(frozen=True)
class Played:
    """Per step what was measured of the whole batch and what `step` said; the weights at the end."""

    measured: list[Measured]
    steps: list[dict[str, float]]
    weights: dict[str, Float32]


def batch_of(step: int, groups: bool) -> TokenBatch:
    """Two or three groups of very different sizes, whose members share a prompt; or as many sequences of no group."""
    rng = np.random.default_rng(step)
    rows, group = [], []
    for g, members in enumerate((5, 2, 1)[: 2 + step % 2]):
        prompt = rng.integers(0, VOCAB, 5 + 3 * g)
        for _ in range(members):
            ids = np.concatenate([prompt, rng.integers(0, VOCAB, rng.integers(3, 12))]).astype(np.int32)
            rows.append((ids, np.arange(len(ids)) >= len(prompt)))
            group.append(g if groups else -1)
    plain = plain_batch(rows)
    n = len(plain.mask)
    old = np.where(plain.mask, np.log(1 / VOCAB) + rng.normal(0, 0.1, n), 0).astype(np.float32)
    advantages = np.where(plain.mask, rng.normal(0, 1, n), 0).astype(np.float32)
    expected, earned = (np.where(plain.mask, rng.normal(0, 1, n), 0).astype(np.float32) for _ in range(2))
    return dataclasses.replace(
        plain,
        advantages=advantages,
        old_logprobs=old,
        sampler_logprobs=old,
        group=np.array(group, np.int32),
        values=expected,
        returns=earned,
    )


def learner_of(case: str, models: Path, ranks: Ranks) -> tuple[Learner, Objective]:
    objective, model, change = CASES[case]
    config = LearnerConfig(threads=1, microbatch_tokens=40, optimizer=OptimizerConfig(lr=1e-3, grad_clip=0.5, weight_decay=0.1), **change)
    learner = Learner(models / model, config, 0, ranks)
    if case == "critic":
        learner.begin_phase(config.optimizer, CriticConfig())
    return learner, OBJECTIVES[objective]


def play(case: str, models: Path, out: Path, ranks: Ranks) -> None:
    """Ten steps, a saved state between them; what this rank measured goes to `out/<case>-<rank>.pickle`."""
    learner, objective = learner_of(case, models, ranks)
    passes, steps = [], []
    for step in range(STEPS):
        if step == BREAK:
            saved = out / f"{case}-state"
            learner.save(saved)
            ranks.sum(0.0)  # the first rank has written it
            learner = learner_of(case, models, ranks)[0]
            learner.restore(saved)
        batch = objective.with_scale(batch_of(step, groups=objective is not CROSS_ENTROPY))
        passes.append(learner.forward_backward(batch.select(shares(batch, ranks.size)[ranks.rank]), objective))
        steps.append(learner.step())
    (out / f"{case}-{ranks.rank}.pickle").write_bytes(pickle.dumps((passes, steps, learner.weights())))


def play_as(rank: int, size: int, models: Path, out: Path, cases: Sequence[str]) -> None:
    """The cases, as one rank of several processes."""
    store = listen("127.0.0.1", size, WAIT_S) if rank == 0 and size > 1 else None
    if store is not None:
        (out / "port").write_text(str(store.port))
    ranks = Ranks() if size == 1 else join("127.0.0.1", store.port if store is not None else port_in(out), rank, size, "cpu", WAIT_S, store)
    for case in cases:
        play(case, models, out, ranks)
    leave(ranks)


def port_in(out: Path) -> int:
    """Where the first rank listens, once it says so."""
    deadline = time.monotonic() + WAIT_S
    while not (out / "port").exists() or not (out / "port").read_text():
        assert time.monotonic() < deadline, "the first rank did not say where it listens"
        time.sleep(0.05)
    return int((out / "port").read_text())


def played(case: str, size: int, out: Path) -> Played:
    """What the ranks left in `out`, put together."""
    objective = OBJECTIVES[CASES[case][0]]
    found = [pickle.loads((out / f"{case}-{rank}.pickle").read_bytes()) for rank in range(size)]
    measured = []
    for step in range(STEPS):
        batch = batch_of(step, groups=objective is not CROSS_ENTROPY)
        measured.append(merged(batch, shares(batch, size), [passes[step] for passes, _, _ in found]))
    assert all(steps[s][key] == found[0][1][s][key] for _, steps, _ in found for s in range(STEPS) for key in ("grad_norm", "lr"))
    assert all(not weights for _, _, weights in found[1:]), "the first rank alone holds whole weights"
    return Played(measured, found[0][1], found[0][2])


if __name__ == "__main__":
    faulthandler.enable()
    play_as(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
