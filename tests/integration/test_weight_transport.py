"""Weights through Ray's object stores, on one node and on two: what is held, what is fetched, and by whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster

from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.engine.layout import shape_of
from burnish.rollout.transport.shipment import Form, Receiver, Shipment
from burnish.rollout.weights import SyncReceipt, sync_weights
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.learner.config import LearnerConfig, OptimizerConfig
from burnish.trainer.learner.group import LearnerGroup, LearnerLimits
from burnish.trainer.objectives.objective import CROSS_ENTROPY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

STORE = 100 * 2**20
HERE, ELSEWHERE = "here", "elsewhere"
HEAD = {"num_cpus": 3, "object_store_memory": STORE, "resources": {HERE: 1}, "include_dashboard": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 MB in float32: two of it do not fit into a store."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=512, hidden_size=512, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


class Taker:
    """An engine's process without the engine."""

    def __init__(self) -> None:
        self.receiver, self.engine = Receiver(ray.get_runtime_context().get_node_id()), ScriptedEngine([[2]], name="e0")

    def take(self, shipment: Shipment) -> SyncReceipt:
        shapes = {name: shape_of(sum_) for name, sum_ in shipment.manifest.items()}
        self.engine = ScriptedEngine([[2]], name="e0", shapes=shapes)
        with self.receiver.taking(shipment, lambda reference: ray.get(reference, timeout=60)) as weights:
            return asyncio.run(sync_weights(self.engine, weights))


def taker(**options: Any) -> Any:
    return ray.remote(Taker).options(num_cpus=0, **options).remote()


def take(one: Any, shipment: Shipment) -> SyncReceipt:
    receipt: SyncReceipt = ray.get(one.take.remote(shipment), timeout=120)
    return receipt


def batch() -> TokenBatch:
    random = np.random.default_rng(0)
    return plain_batch([(random.integers(0, 512, 40).astype(np.int32), np.arange(40) > 2) for _ in range(4)])


def learner(model: Path, lr: float, form: Form) -> LearnerGroup:
    group = LearnerGroup(model, LearnerConfig(threads=1, optimizer=OptimizerConfig(lr=lr)), 0, num_gpus=0, limits=LearnerLimits(200))
    group.send_as(form)
    return group


def step(group: LearnerGroup) -> None:
    group.forward_backward(batch(), CROSS_ENTROPY)
    group.step()


def test_a_store_that_holds_the_weights_once_is_enough(cluster: Cluster, model: Path) -> None:
    """The old ones are freed before the new ones are made; otherwise Ray would move some to the disk."""
    group, engine = learner(model, 1e-3, Form("float32", bucket_bytes=10 << 20)), taker()
    for _ in range(5):
        shipment = group.snapshot()
        assert len(shipment.parts) > 4
        receipt = take(engine, shipment)
        assert receipt.bytes > 55e6 and not receipt.delta
        step(group)
    assert "Spilled" not in memory_summary(stats_only=True)
    group.shutdown()


def test_an_engine_on_another_node_gets_what_changed_and_a_new_one_everything(cluster: Cluster, model: Path) -> None:
    cluster.add_node(num_cpus=0, resources={ELSEWHERE: 1}, object_store_memory=STORE)
    cluster.wait_for_nodes()
    group = learner(model, 1e-6, Form("bfloat16", whole_every=4, bucket_bytes=10 << 20))
    near, far = taker(resources={HERE: 0.1}), taker(resources={ELSEWHERE: 0.1})
    sizes, deltas = [], []
    for number in range(7):
        if number == 5:  # its process is another, which has nothing
            ray.kill(far)
            far = taker(resources={ELSEWHERE: 0.1})
        shipment = group.snapshot()
        assert not take(near, shipment).delta
        receipt = take(far, shipment)
        assert receipt.version == number and receipt.tensors == 21
        sizes.append(receipt.bytes)
        deltas.append(receipt.delta)
        step(group)
    # 0: there is nothing before it. 1: nothing was kept yet. 4: whole, as every fourth. 5: a new process.
    assert deltas == [False, False, True, True, False, False, True]
    whole = sizes[0]
    assert all(size * 5 < whole for size, delta in zip(sizes, deltas, strict=True) if delta), sizes
    assert "Spilled" not in memory_summary(stats_only=True)
    group.shutdown()
