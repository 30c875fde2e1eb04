"""What a placement asks of Ray, on a cluster that is told it has GPUs: each process sees those it was given and no others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from burnish.cluster import request_resources
from burnish.recipe.placement import Placement, cluster_problem
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.worker import WorkerSetup
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.rllib import RFT, RFTConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start_local_ray(
        num_cpus=4, num_gpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=200 * 2**20
    )
    yield
    ray.shutdown()


def config(model: Path, placement: Placement) -> RFTConfig:
    """The engine itself is on the CPU: what is looked at here is which GPUs its process was given."""
    worker = WorkerSetup(
        model=model,
        environment="burnish/Arithmetic-v0",
        rollout=RolloutConfig(max_tokens_per_turn=4),
        engine=EngineConfig(device="cpu", max_context=128, kv_cache_mb=32),
    )
    settings = RFTConfig().rft(worker=worker, learner=LearnerConfig(threads=1))
    request_resources(settings, placement)
    return settings


def visible(_: Any) -> list[str]:
    return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]


def test_learner_and_engine_see_the_gpus_they_were_given(three_gpus: None, tiny_model: Path) -> None:
    placement = Placement("gpu", learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2)
    assert cluster_problem(placement, [node["Resources"].get("GPU", 0.0) for node in ray.nodes()]) is None
    algo = config(tiny_model, placement).build_algo()
    try:
        assert ray.available_resources().get("GPU", 0.0) == 0.0
        (learner,) = algo.learner_group.foreach_learner(visible)
        (engine,) = algo.env_runner_group.foreach_env_runner(visible, local_env_runner=False)
        assert (len(learner), len(engine), len({*learner, *engine})) == (1, 2, 3)
    finally:
        algo.stop()


def test_two_learners_see_a_gpu_each(three_gpus: None, tiny_model: Path) -> None:
    """They compute on the CPU here, over gloo: what is looked at is which GPU each process was given."""
    algo = config(tiny_model, Placement("gpu", learner_gpus=1.0, engine_gpus=1.0, learners=2)).build_algo()
    try:
        assert ray.available_resources().get("GPU", 0.0) == 0.0
        first, second = algo.learner_group.foreach_learner(visible)
        (engine,) = algo.env_runner_group.foreach_env_runner(visible, local_env_runner=False)
        assert (len(first), len(second), len({*first, *second, *engine})) == (1, 1, 3)
    finally:
        algo.stop()
    assert not [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def test_under_tune_the_bundles_of_the_placement_group_are_the_same(tiny_model: Path) -> None:
    placement = Placement("gpu", engines=2, learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2)
    group = RFT.default_resource_request(config(tiny_model, placement))
    assert sorted(bundle.get("GPU", 0.0) for bundle in group.bundles) == [1.0, 2.0, 2.0]
    assert group.strategy == "PACK"
