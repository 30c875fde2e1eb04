"""vLLM's own statistics beside ours: where they are asked for, Prometheus scrapes them from the node's Ray."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.rollout.engine import EngineConfig, make_engine
from burnish.rollout.engine.base import GenerateRequest
from burnish.rpc.local_ray import start_local_ray

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

TOKENS = re.compile(r"^ray_vllm_generation_tokens_total\{(.*)\} ([0-9.]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    """Where Prometheus scrapes the metrics of this process."""
    import ray

    start_local_ray(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=100 * 2**20)
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


@pytest.mark.parametrize("backend", ["vllm-inprocess", "vllm-async"])
def test_vllms_statistics_are_metrics_of_ray(backend: Any, metrics: str, tiny_model: Path) -> None:
    before = counted(metrics)
    engine = make_engine(
        EngineConfig(backend=backend, max_context=256, kv_cache_mb=64, max_num_seqs=16, vllm_metrics=True), tiny_model, "engine-counted"
    )
    try:
        request = GenerateRequest("task/0", [7, 20, 33, 41], max_tokens=50, temperature=1.0, stop_token_ids=(), seed=0)
        assert len(asyncio.run(engine.generate(request)).token_ids) == 50
        end = time.monotonic() + 60
        while counted(metrics) < before + 50 and time.monotonic() < end:
            time.sleep(1)
        assert counted(metrics) >= before + 50
    finally:
        asyncio.run(engine.close())


def counted(metrics: str) -> float:
    """Tokens sampled by all engines of this process; none is called by the path of its model."""
    with urllib.request.urlopen(metrics, timeout=10) as answer:
        found = TOKENS.findall(answer.read().decode())
    assert all('model_name="policy"' in labels for labels, _ in found)
    return sum(float(value) for _, value in found)
