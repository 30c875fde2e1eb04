"""A fleet over two Ray nodes of one machine: an engine on each, one node goes in the middle of training, another comes."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from tests.integration.scripted_runners import ScriptedConfig
from tests.integration.test_schedules import setup

from burnish.trainer.fleet import FleetLimits
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.group import LearnerGroup, LearnerLimits
from burnish.trainer.learner.probe import probe_loss
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

SLOT = "engine_slot"
STORE = 100 * 2**20
PREEMPTED = 2
"""Ray's DRAIN_NODE_REASON_PREEMPTION."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with the learner, and two nodes with room for one engine each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, resources={SLOT: 1}, object_store_memory=STORE)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def one_each() -> Iterator[Cluster]:
    """Two nodes with room for one learner each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_learners_meet_over_the_network_only_where_that_is_trusted(one_each: Cluster, tiny_model: Path) -> None:
    def made(limits: LearnerLimits) -> LearnerGroup:
        return LearnerGroup(tiny_model, LearnerConfig(threads=1), 0, num_gpus=0, limits=limits, learners=2)

    with pytest.raises(ValueError, match=r"on more than one node, where torch\.distributed asks nobody who it is"):
        made(LearnerLimits(200))
    group = made(LearnerLimits(200, apart=True))  # and the room of those that were refused is free again
    try:
        first, second = group.foreach_learner(probe_loss)
        assert first.loss == pytest.approx(second.loss)
    finally:
        group.shutdown()


def nodes_of(algo: Any) -> list[str]:
    """The node of each runner, by its number."""

    def node(runner: Any) -> str:
        return str(ray.get_runtime_context().get_node_id())

    runners = algo.fleet.runners
    return [ray.get(runners[number].apply.remote(node), timeout=60) for number in sorted(runners)]


def test_an_engine_whose_node_goes_is_brought_back_on_another(cluster: Cluster, tiny_model: Path) -> None:
    phase = RFTPhaseConfig(steps=6, groups_per_step=4, group_size=4, lr=1e-3, equal_groups="keep")
    config = ScriptedConfig().rft(worker=setup(tiny_model), phase=phase, success="digits", fleet=FleetLimits(8, restart_s=200.0))
    config.env_runners(num_env_runners=2, custom_resources_per_env_runner={SLOT: 1})
    config.fault_tolerance(max_num_env_runner_restarts=10)
    algo = config.build_algo()
    try:
        for _ in range(2):
            algo.train()
        before = nodes_of(algo)
        assert len(set(before)) == 2, "an engine on each node"
        (going,) = [node for node in cluster.list_all_nodes() if node.node_id == before[1]]
        cluster.remove_node(going, allow_graceful=False)
        cluster.add_node(num_cpus=1, resources={SLOT: 1}, object_store_memory=STORE)
        for _ in range(4):
            algo.train()
        after = nodes_of(algo)
        assert after[0] == before[0] and after[1] not in before, "the one moved, the other stayed"
        assert algo.fleet.restarts >= 1
        versions = ray.get([runner.weight_version.remote() for runner in algo.fleet.runners.values()], timeout=60)
        assert versions == [6, 6], "and both have the weights of the last step"
        books = algo.loop.progress.ledger
        assert (books.trained_count, books.issued) == (6 * 16, 6 * 16), "nothing was lost, nothing was trained twice"
    finally:
        algo.stop()


@pytest.fixture
def one_slot() -> Iterator[Cluster]:
    """A head with the learner, and one node with room for an engine."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1, resources={SLOT: 1}, object_store_memory=STORE)
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def train_until(algo: Any, so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300.0
    while not so():
        assert time.monotonic() < deadline, algo.fleet.runners
        algo.train()


def test_engines_come_with_nodes_and_go_with_them(one_slot: Cluster, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    phase = RFTPhaseConfig(steps=100_000, groups_per_step=4, group_size=4, lr=1e-3, equal_groups="keep", rollouts="async")
    limits = FleetLimits(8, restart_s=200.0, min_runners=1, max_runners=2)
    config = ScriptedConfig().rft(worker=setup(tiny_model), phase=phase, success="digits", fleet=limits)
    config.env_runners(num_env_runners=1, custom_resources_per_env_runner={SLOT: 1})
    algo = config.build_algo()
    played = set[str]()
    algo.on_group = lambda group: played.update(episode.engine for episode in group.episodes)
    try:
        algo.train()
        (first,) = nodes_of(algo)
        node = one_slot.add_node(num_cpus=1, resources={SLOT: 1}, object_store_memory=STORE)
        train_until(algo, lambda: "rollout-2" in played)
        assert nodes_of(algo) == [first, node.node_id] and algo.last_metrics["engines"] == 2
        one_slot.remove_node(node, allow_graceful=False)
        train_until(algo, lambda: set(algo.fleet.runners) == {1})
        other = one_slot.add_node(num_cpus=1, resources={SLOT: 1}, object_store_memory=STORE)
        train_until(algo, lambda: "rollout-3" in played)
        ray._private.worker.global_worker.gcs_client.drain_node(other.node_id, PREEMPTED, "in an hour", int((time.time() + 3600) * 1000))
        train_until(algo, lambda: set(algo.fleet.runners) == {1})
        books, done = algo.loop.progress.ledger, algo.loop.progress.step
        assert books.trained_count == done * 16 and not books.masked and not books.dropped, "nothing was lost, nothing was trained twice"
        said = [record.getMessage() for record in caplog.records if record.name.startswith("burnish")]
        assert [said[0], said[2]] == ["rollout-2 has joined: 2 engines", "rollout-3 has joined: 2 engines"]
        assert re.fullmatch(r"rollout-2 has left, its node .* is gone: 1 engine", said[1])
        assert re.fullmatch(r"rollout-3 has left, its node .* is about to go: 1 engine", said[3])
    finally:
        algo.stop()
