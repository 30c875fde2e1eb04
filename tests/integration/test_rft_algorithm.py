"""RFT as an RLlib algorithm, for real: Ray actors, vLLM, the learner, a random policy that learns to write digits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.weights import SyncProofError
from burnish.rollout.worker import WorkerSetup
from burnish.trainer.phases.config import RFTPhaseConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

PLUGIN = Path(__file__).parent / "digit_reward.py"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    import logging

    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def algo(ray_session: None, tiny_model: Path) -> Iterator[Any]:
    from burnish.trainer.rllib import RFTConfig

    worker = WorkerSetup(
        model=tiny_model,
        environment="burnish/Arithmetic-v0",
        environment_weight=0.0,
        rewards=(RewardConfig(use="tests/digits-v1"),),
        rollout=RolloutConfig(max_tokens_per_turn=8, concurrency=32),
        engine=EngineConfig(max_context=128, kv_cache_mb=32, max_num_seqs=32),
        plugins=(str(PLUGIN),),
        seed=5,
    )
    phase = RFTPhaseConfig(groups_per_step=8, group_size=8, lr=1e-2)
    config = RFTConfig().rft(worker=worker, phase=phase, success="digits")
    built = config.build_algo()
    yield built
    built.stop()


def test_a_policy_learns_and_every_step_proves_its_weights(algo: Any) -> None:
    rewards = []
    for step in range(1, 11):
        algo.train()
        metrics = algo.last_metrics
        rewards.append(metrics["reward_mean"])
        assert metrics["learner/parity_max"] < 2e-4
        assert metrics["learner/stale_fraction"] == 0.0
        assert metrics["weight_version"] == step == algo.learner_group.version
        algo.loop.progress.ledger.check()
    assert rewards[-1] > rewards[0] + 0.1


def test_saving_and_restoring_takes_over_weights_position_and_books(algo: Any, tmp_path: Path) -> None:
    saved = algo.save_to_path(str(tmp_path / "checkpoint"))
    version, position, books = algo.learner_group.version, algo.loop.progress.position, algo.loop.progress.ledger.row()
    algo.train()
    assert algo.learner_group.version == version + 1
    algo.restore_from_path(saved)
    assert (algo.learner_group.version, algo.loop.progress.position, algo.loop.progress.ledger.row()) == (version, position, books)
    algo.train()
    assert algo.last_metrics["learner/parity_max"] < 2e-4


def test_training_goes_on_when_a_runner_is_killed(algo: Any) -> None:
    import ray

    (runner,) = algo.fleet.runners.values()
    ray.kill(runner, no_restart=False)
    algo.train()
    assert algo.fleet.restarts == 1
    assert algo.last_metrics["learner/parity_max"] < 2e-4
    algo.loop.progress.ledger.check()


def test_skipping_one_sync_stops_the_run_and_names_the_engine(algo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = algo.sync()
    monkeypatch.setattr(algo.loop, "sync", lambda: receipts)
    algo.train()  # updates, and does not sync
    with pytest.raises(SyncProofError, match=r"engine rollout-1: .* missed a weight update"):
        algo.train()
