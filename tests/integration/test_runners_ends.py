"""Runners of a real Ray, from their start to their end: nobody waits without end for room, nor for one that hangs."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.worker import WorkerSetup
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.fleet import FleetLimits
from burnish.trainer.learner.group import LearnerLimits
from burnish.trainer.runners import FleetError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

WAIT_S = 120.0


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> Iterator[Any]:
    import ray
    from tests.integration.scripted_runners import ScriptedConfig

    start_local_ray(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20)
    worker = WorkerSetup(
        tiny_model,
        "burnish/Arithmetic-v0",
        rollout=RolloutConfig(max_tokens_per_turn=8, concurrency=8),
        engine=EngineConfig(max_context=128),
    )
    yield ScriptedConfig().rft(worker=worker, fleet=FleetLimits(8, cancel_s=1.0))
    ray.shutdown()


def until(holds: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_busy_cluster_is_said_and_nothing_of_the_start_stays(config: Any) -> None:
    import ray

    began = time.monotonic()
    soon = config.copy(copy_frozen=False).rft(learner_limits=LearnerLimits(place_s=2.0))
    asking = soon.copy(copy_frozen=False).env_runners(custom_resources_per_env_runner={"what_others_have": 1.0})
    with pytest.raises(
        FleetError, match=r"no room for 1 of 1 engines of 1 CPU, 1 what_others_have each within limits\.place_s = 2 s; free now"
    ):
        asking.build_algo()
    assert time.monotonic() - began < WAIT_S
    until(lambda: ray.available_resources().get("CPU") == 2.0)
    busy = ray.util.placement_group([{"CPU": 2.0}])
    ray.get(busy.ready(), timeout=WAIT_S)
    try:
        with pytest.raises(TimeoutError, match="no room for a learner of 1 CPU within"):
            soon.build_algo()
    finally:
        ray.util.remove_placement_group(busy)


def test_a_runner_that_hangs_does_not_hold_up_the_end(config: Any) -> None:
    import ray

    algo = config.copy(copy_frozen=False).build_algo()
    (runner,) = algo.fleet.runners.values()
    pid = ray.get(runner.pid.remote(), timeout=WAIT_S)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    algo.stop()
    assert time.monotonic() - began < WAIT_S
    until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: ray.available_resources().get("CPU") == 2.0)
