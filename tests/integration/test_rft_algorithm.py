"""RFT as an RLlib algorithm, for real: Ray actors, vLLM, the learner, a random policy that learns to write digits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.weights import SyncProofError
from burnish.rollout.worker import WorkerSetup
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

PLUGIN = Path(__file__).parent / "digit_reward.py"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    import logging

    import ray

    start_local_ray(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
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
    config = RFTConfig().fault_tolerance(max_num_env_runner_restarts=10).rft(worker=worker, phase=phase, success="digits")
    built = config.build_algo()
    yield built
    built.stop()


def test_a_policy_learns_and_every_step_proves_its_weights(algo: Any) -> None:
    rewards = []
    for step in range(1, 11):
        algo.train()
        metrics = algo.last_metrics
        rewards.append(metrics["reward_mean"])
        assert metrics["learner/parity_mean"] < 5e-5
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
    assert algo.last_metrics["learner/parity_mean"] < 5e-5


def pid_of(algo: Any) -> int:
    import ray

    (runner,) = algo.fleet.runners.values()
    for _ in range(120):
        try:
            pid: int = ray.get(runner.pid.remote(), timeout=120)
            return pid
        except ray.exceptions.ActorUnavailableError:  # it is being restarted
            time.sleep(1.0)
    raise AssertionError("the runner did not come back")


def test_training_goes_on_when_a_runner_is_killed_between_two_steps(algo: Any) -> None:
    import ray

    (runner,) = algo.fleet.runners.values()
    ray.kill(runner, no_restart=False)
    algo.train()  # RLlib has not heard of it yet: test_rllib_recovery.py has what it does once it has
    assert algo.fleet.restarts == 1
    assert algo.last_metrics["learner/stale_fraction"] == 0.0
    algo.loop.progress.ledger.check()


def test_a_runner_that_was_restarted_never_plays_with_the_weights_it_was_built_from(algo: Any) -> None:
    """Between training and evaluation it dies and comes back: it refuses tasks until it has the learner's weights."""
    from burnish.trainer.data.tasks import held_out_tasks
    from burnish.trainer.playing import run_tasks

    os.kill(pid_of(algo), signal.SIGKILL)
    pid_of(algo)  # back, with the weights of the model folder
    groups = list(run_tasks(algo.fleet, held_out_tasks((2000, 3000), 8), 1, 0.0))
    versions = {int(version) for group in groups for turn in group.episodes[0].turns for version in turn.policy_version}
    assert len(groups) == 8 and versions == {algo.learner_group.version}


def test_a_runner_that_hangs_is_replaced(algo: Any) -> None:
    algo.fleet.limits = dataclasses.replace(algo.fleet.limits, answer_s=20.0)
    before, hung = algo.fleet.restarts, pid_of(algo)
    os.kill(hung, signal.SIGSTOP)
    try:
        algo.train()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hung, signal.SIGCONT)
    assert algo.fleet.restarts == before + 1 and pid_of(algo) != hung
    assert algo.last_metrics["learner/stale_fraction"] == 0.0
    algo.loop.progress.ledger.check()


def test_a_runner_that_is_slow_is_waited_for(algo: Any) -> None:
    """One that does not answer for a while, and less than the fleet's limit, is not restarted."""
    algo.fleet.limits = dataclasses.replace(algo.fleet.limits, answer_s=120.0)
    before, slow = algo.fleet.restarts, pid_of(algo)
    os.kill(slow, signal.SIGSTOP)
    threading.Timer(3.0, os.kill, (slow, signal.SIGCONT)).start()
    algo.train()
    assert algo.fleet.restarts == before and pid_of(algo) == slow


def test_skipping_one_sync_stops_the_run_and_names_the_engine(algo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = algo.sync()
    monkeypatch.setattr(algo.loop, "sync", lambda: receipts)
    algo.train()  # updates, and does not sync
    with pytest.raises(SyncProofError, match=r"engine rollout-1: .* missed a weight update"):
        algo.train()
