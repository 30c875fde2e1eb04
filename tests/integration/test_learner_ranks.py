"""Several learners that share a policy do what one does: two and three gloo ranks on a CPU against a single process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tests.integration.rank_targets import CASES, STEPS, WAIT_S, Played, batch_of, played
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.rollout.engine.layout import checksum
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.learner.config import LearnerConfig, OptimizerConfig
from burnish.trainer.learner.group import LearnerGroup, LearnerLimits, LearnerLost
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.probe import probe_loss
from burnish.trainer.objectives.losses import LossInputs, LossOutputs
from burnish.trainer.objectives.objective import Objective

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

CLOSE = 1e-5
RANKS = {1: [*CASES], 2: [*CASES], 3: ["grpo"]}
"""What is played by how many ranks. With three, one has no sequence of a batch of two groups."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("tied", "untied"):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=41, hidden_size=32, intermediate_size=47, num_hidden_layers=2, num_attention_heads=2,
                             num_key_value_heads=1, tie_word_embeddings=name == "tied", initializer_range=0.1)  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Played]]:
    found: dict[int, dict[str, Played]] = {}
    for size, cases in RANKS.items():
        out = tmp_path_factory.mktemp(f"ranks-{size}")
        commands = [
            [sys.executable, "-m", "tests.integration.rank_targets", str(rank), str(size), str(models), str(out), *cases]
            for rank in range(size)
        ]
        processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
        try:
            said = [process.communicate(timeout=WAIT_S)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        codes = [process.returncode for process in processes]
        if any(codes):  # an assertion would cut what they said
            pytest.fail("\n".join(f"rank {rank} of {size} ended with {codes[rank]}: {said[rank]}" for rank in range(size)))
        found[size] = {case: played(case, size, out) for case in cases}
    return found


@pytest.mark.parametrize(("size", "case"), [(size, case) for size, cases in RANKS.items() if size > 1 for case in cases])
def test_several_ranks_equal_one_over_ten_steps(runs: dict[int, dict[str, Played]], size: int, case: str) -> None:
    alone, shared = runs[1][case], runs[size][case]
    assert alone.weights.keys() == shared.weights.keys()
    apart = {name: float(np.abs(alone.weights[name] - shared.weights[name]).max()) for name in alone.weights}
    assert max(apart.values()) < CLOSE, max(apart, key=apart.__getitem__)
    for step in range(STEPS):
        batch = batch_of(step, groups=case not in ("supervised", "untied"))
        of_one, of_many = (run.measured[step].means(batch) | run.steps[step] for run in (alone, shared))
        assert of_one.keys() == of_many.keys()
        for name in of_one.keys() - {"seconds"}:
            assert of_many[name] == pytest.approx(of_one[name], rel=CLOSE, abs=CLOSE), (step, name)
        np.testing.assert_allclose(shared.measured[step].logprobs, alone.measured[step].logprobs, atol=CLOSE)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start_local_ray(
        num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=200 * 2**20, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )  # fmt: skip
    yield
    ray.shutdown()


def bare(inputs: LossInputs) -> LossOutputs:
    """A loss that gives a single number where it owes one per token."""
    return LossOutputs({"policy": inputs.logprobs.sum()}, {})


def end(learner: Learner) -> None:
    if learner.ranks.rank == 1:
        os._exit(1)
    learner.ranks.sum(1.0)


def test_a_group_of_two_learners_does_what_one_does_and_hands_its_state_on(cluster: None, models: Path, tmp_path: Path) -> None:
    config, objective = LearnerConfig(threads=1, optimizer=OptimizerConfig(lr=1e-3)), Objective("ppo_clip", kl_coef=0.1)
    alone = Learner(models / "tied", config, 0)
    group = LearnerGroup(models / "tied", config, 0, num_gpus=0, limits=LearnerLimits(200), learners=2)
    with pytest.raises(ValueError, match="one value per token"):
        group.forward_backward(batch_of(1, groups=True), Objective(bare))
    for step in (1, 3):
        batch = batch_of(step, groups=True)
        expected, found = alone.forward_backward(batch, objective), group.forward_backward(batch, objective)
        assert found.means(batch) == pytest.approx(expected.means(batch), abs=CLOSE)
        assert group.step()["grad_norm"] == pytest.approx(alone.step()["grad_norm"], rel=CLOSE)
    assert group.version == 2
    batch = batch_of(5, groups=True)
    scored = group.score(batch)
    np.testing.assert_allclose(scored.logprobs, alone.score(batch).logprobs, atol=CLOSE)
    assert scored.terms["loss"] == pytest.approx(alone.score(batch).terms["loss"], abs=CLOSE)
    ours = [found.loss for found in group.foreach_learner(probe_loss)]
    assert ours == pytest.approx([probe_loss(alone).loss] * 2, abs=CLOSE)

    group.save_to_path(tmp_path / "state")
    weights = group.weights()
    sent = group.snapshot()
    assert sent.manifest == {name: checksum(array) for name, array in weights.items()}
    arrived = {name: array for part in sent.parts for name, array in ray.get(part.bucket).tensors()}
    assert all(np.array_equal(array, weights[name]) for name, array in arrived.items()) and arrived.keys() == weights.keys()
    alone.restore(tmp_path / "state")  # exactly what two had between them, reference and moments included
    assert all(np.array_equal(array, weights[name]) for name, array in alone.weights().items())
    assert group.forward_backward(batch, objective).means(batch) == pytest.approx(
        alone.forward_backward(batch, objective).means(batch), abs=CLOSE
    )

    with pytest.raises(LearnerLost):
        group.foreach_learner(end)
    with pytest.raises(LearnerLost):  # the other waited for it and was ended
        group.foreach_learner(probe_loss)


def test_a_loss_in_a_file_is_found_where_the_driver_runs_though_ray_was_started_elsewhere(
    cluster: None, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("""
from burnish.trainer.objectives.losses import LossInputs, LossOutputs

def twice(inputs: LossInputs) -> LossOutputs:
    return LossOutputs({"policy": -2.0 * inputs.logprobs}, {})
""")
    monkeypatch.chdir(tmp_path)
    group = LearnerGroup(models / "tied", LearnerConfig(threads=1), 0, num_gpus=0, limits=LearnerLimits(200))
    try:
        batch = batch_of(1, groups=True)
        once = group.forward_backward(batch, Objective("cross_entropy")).means(batch)["loss"]
        found = group.forward_backward(batch, Objective("own.py:twice", aggregation="token")).means(batch)
        assert found["loss"] == pytest.approx(2 * once, rel=CLOSE)
    finally:
        group.shutdown()
