"""RLlib's own care of its runners beside the fleet's: what it asks of our groups, whatever it takes a runner for, changes nothing.

It marks a runner unhealthy that died or did not answer one of its own calls, looks before every step whether it is back, and would then ask
the learner for an RLModule, which there is none of.
"""

from __future__ import annotations

import inspect
import logging
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
from burnish.rollout.worker import WorkerSetup
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PLUGIN = Path(__file__).parent / "digit_reward.py"
WAIT_S = 300.0


@pytest.fixture(scope="module")
def algo(tiny_model: Path) -> Iterator[Any]:
    import ray
    from tests.integration.scripted_runners import ScriptedConfig

    start_local_ray(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
    worker = WorkerSetup(
        model=tiny_model,
        environment="burnish/Arithmetic-v0",
        environment_weight=0.0,
        rewards=(RewardConfig(use="tests/digits-v1"),),
        rollout=RolloutConfig(max_tokens_per_turn=8, concurrency=8),
        engine=EngineConfig(max_context=128),
        plugins=(str(PLUGIN),),
        seed=5,
    )
    phase = RFTPhaseConfig(groups_per_step=2, group_size=4, lr=1e-3, equal_groups="keep")
    config = ScriptedConfig().fault_tolerance(max_num_env_runner_restarts=10).rft(worker=worker, phase=phase, success="digits")
    try:
        built = config.build_algo()
        yield built
        built.stop()
    finally:
        ray.shutdown()


def pid_of(algo: Any) -> int:
    import ray

    (runner,) = algo.fleet.runners.values()
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            pid: int = ray.get(runner.pid.remote(), timeout=WAIT_S)
            return pid
        except ray.exceptions.RayActorError:  # it is being restarted
            assert time.monotonic() < deadline, "the runner did not come back"
            time.sleep(0.5)


def trains(algo: Any) -> None:
    """One step, whose tokens are of the learner's weights."""
    before = algo.learner_group.version
    algo.train()
    assert algo.learner_group.version == before + 1 == algo.last_metrics["weight_version"]
    assert algo.last_metrics["learner/stale_fraction"] == 0.0
    algo.loop.progress.ledger.check()


def test_a_runner_that_rllib_took_for_unhealthy_and_that_answers_again(algo: Any, tmp_path: Path) -> None:
    trains(algo)
    algo.env_runner_group._worker_manager.set_actor_state(1, healthy=False)
    trains(algo)
    assert algo.fleet.restarts == 0, "it was well all the time"
    algo.restore_from_path(algo.save_to_path(str(tmp_path / "checkpoint")))
    trains(algo)


def test_a_runner_that_died_and_is_back_before_the_next_step(algo: Any) -> None:
    before, died = algo.fleet.restarts, pid_of(algo)
    os.kill(died, signal.SIGKILL)
    algo.env_runner_group._worker_manager.set_actor_state(1, healthy=False)  # as when one of its calls fails
    assert pid_of(algo) != died, "it is back, with the weights of the model folder"
    trains(algo)
    assert algo.fleet.restarts == before + 1


def test_a_runner_that_is_dead_when_the_step_begins(algo: Any) -> None:
    before = algo.fleet.restarts
    os.kill(pid_of(algo), signal.SIGKILL)
    trains(algo)
    assert algo.fleet.restarts == before + 1


def test_a_runner_that_is_slow_while_rllib_asks_for_it(algo: Any) -> None:
    before, slow = algo.fleet.restarts, pid_of(algo)
    algo.env_runner_group._worker_manager.set_actor_state(1, healthy=False)
    os.kill(slow, signal.SIGSTOP)
    waking = threading.Timer(3.0, os.kill, (slow, signal.SIGCONT))
    waking.start()
    algo.env_runner_group.probe_unhealthy_env_runners()
    trains(algo)
    waking.join()
    assert algo.fleet.restarts == before and pid_of(algo) == slow


WALKED = {"step", "training_step", "setup", "get_state", "set_state", "restore_from_path", "restore_env_runners", "cleanup",
          "get_checkpointable_components"}  # fmt: skip
"""What RLlib's trainable calls by itself in `build_algo`, `train`, `save_to_path`, `restore_from_path` and `stop`: here and in
test_rft_algorithm.py."""
OTHERS = {"env_runner", "eval_env_runner", "resource_help", "restore_workers", "restore_offline_eval_runners", "save_checkpoint"}
"""Properties that hand the groups themselves out, and what only the old API stack or offline evaluation calls."""


def test_whatever_rllib_does_with_our_groups_is_walked_or_refused(algo: Any) -> None:
    """A new release of RLlib that asks something else of runners or learner shows up here."""
    from ray.rllib.algorithms.algorithm import Algorithm

    def touches_groups(member: Any) -> bool:
        code = getattr(getattr(member, "fget", member), "__func__", getattr(member, "fget", member))
        return callable(code) and any(
            name in getattr(inspect.unwrap(code), "__code__", touches_groups.__code__).co_names
            for name in ("env_runner_group", "learner_group", "workers", "eval_env_runner_group")
        )

    public = {name for name, member in vars(Algorithm).items() if not name.startswith("_") and touches_groups(member)}
    refused = {name for name in dir(type(algo)) if getattr(getattr(type(algo), name), "__qualname__", "").startswith("_refused.")}
    assert public <= WALKED | OTHERS | refused
    for name in refused:
        with pytest.raises(ValueError, match=r"^RFT does not .+: .+"):
            getattr(algo, name)()
