"""Adapters alone on their way to a real engine: what vLLM computes with, beside what it computes with when the learner merges them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.transport.shipment import Form
from burnish.rollout.weights import PARITY_BOUNDS, check_parity
from burnish.rollout.worker import WorkerSetup
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.batch import plain_batch
from burnish.trainer.learner.config import LearnerConfig, LoRAConfig
from burnish.trainer.models.folder import Origin, write_model_folder
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.rllib import RFTConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ADAPTERS = LoRAConfig(rank=4, alpha=16)
BYTES = 4 * 4 * 2 * (4 * (64 + 64) + 3 * (64 + 128))
"""Of A and B of rank 4 in float32, in two layers of tiny_model: four matrices of attention and three of the MLP."""
IDS = [np.random.default_rng(number).integers(3, 250, 60).astype(np.int32) for number in range(4)]


@pytest.fixture
def algo(tiny_model: Path) -> Iterator[Any]:
    start_local_ray(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
    worker = WorkerSetup(
        model=tiny_model,
        environment="burnish/Arithmetic-v0",
        environment_weight=0.0,
        rewards=(RewardConfig(use="tests/digits-v1"),),
        rollout=RolloutConfig(max_tokens_per_turn=8, concurrency=32),
        engine=EngineConfig(max_context=128, kv_cache_mb=32, max_num_seqs=32),
        plugins=(str(Path(__file__).parent / "digit_reward.py"),),
        seed=5,
    )
    phase = RFTPhaseConfig(groups_per_step=4, group_size=4, lr=3e-2, equal_groups="keep")
    config = RFTConfig().fault_tolerance(max_num_env_runner_restarts=10)
    built = config.rft(worker=worker, phase=phase, success="digits", learner=LearnerConfig(threads=1, lora=ADAPTERS)).build_algo()
    yield built
    built.stop()
    ray.shutdown()


def scored(algo: Any) -> Any:
    """The engine's log-probabilities, float32 `[N]`."""
    (rows,) = algo.fleet.score(IDS).values()
    return np.concatenate(rows)


def learners(algo: Any) -> Any:
    """The learner's of the same tokens."""
    batch = plain_batch([(ids, np.arange(len(ids)) > 0) for ids in IDS])
    return algo.learner_group.score(batch).logprobs[batch.mask]


def test_an_engine_that_gets_adapters_alone_computes_what_one_does_that_gets_the_whole_model(
    algo: Any, tiny_model: Path, tmp_path: Path
) -> None:
    before = scored(algo)
    for _ in range(3):
        algo.train()
        assert algo.last_metrics["learner/parity_mean"] < PARITY_BOUNDS["float32"].mean
        assert algo.last_metrics["sync_megabytes"] == pytest.approx(BYTES / 1e6)
    alone, version = scored(algo), algo.learner_group.version
    assert np.abs(alone - before).max() > 1e-2, "adapters that change nothing prove nothing"

    (runner,) = algo.fleet.runners.values()
    os.kill(ray.get(runner.pid.remote(), timeout=60), signal.SIGKILL)
    assert np.array_equal(scored(algo), alone), "a new engine has the base, and gets the adapters"

    algo.learner_group.send_as(Form("float32"))  # as engine.adapters = "merged" does
    (receipt,) = algo.fleet.sync(algo.learner_group.snapshot())
    assert receipt.bytes > 10 * BYTES and receipt.version == version
    merged, versions = scored(algo), np.full(len(alone), version)
    check_parity("alone", version, merged, alone, versions)
    for what in (alone, merged):
        check_parity("rollout-1", version, learners(algo), what, versions)

    base = tmp_path / "merged"  # as the last checkpoint of a phase is
    write_model_folder(algo.learner_group.weights(), tiny_model, base, Origin(name="merged", stage="rft", source="here"))
    algo.learner_group.send_as(Form("float32", adapters=True))
    algo.learner_group.rebase(base, LoRAConfig(rank=2, alpha=4, targets=("q_proj",)))
    assert np.abs(learners(algo) - merged).max() < 1e-3
    algo.train()
    assert algo.last_metrics["sync_megabytes"] > 10 * BYTES / 1e6, "engines do not have that model, and get it whole"
    assert algo.last_metrics["learner/parity_mean"] < PARITY_BOUNDS["float32"].mean
    check_parity("rollout-1", version + 1, learners(algo), scored(algo), versions + 1)
