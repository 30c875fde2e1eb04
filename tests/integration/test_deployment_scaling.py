"""A version that scales with its load, on Ray Serve's own autoscaler and real engines."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from ray import serve

from burnish.serving.fleet import start_deployment
from burnish.serving.routes import app_name
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SIZE = ModelSize(hidden=64, layers=2, heads=2, intermediate=96, vocab_size=300, max_position=256)
TEXT = """
service.port = 0

[models.clerk.versions.v1]
model = "{folder}/tiny"
autoscaling = {{max_replicas = 2, target_ongoing_requests = 1, upscale_delay_s = 1}}
"""
WAIT_S = 600.0


def replicas() -> int:
    deployment = serve.status().applications[app_name("clerk:v1")].deployments["model"]
    return int(deployment.replica_states.get("RUNNING", 0))


def test_an_engine_is_added_when_there_is_more_to_answer_than_one_is_meant_to(tmp_path: Path) -> None:
    new_model([f"The bore of part {i} measures {i * 0.37:.3f} mm." for i in range(60)], tmp_path / "tiny", SIZE)
    (tmp_path / "deployment.toml").write_text(TEXT.format(folder=tmp_path))
    with start_deployment(tmp_path / "deployment.toml", print) as running:
        assert replicas() == 1
        deadline = time.monotonic() + WAIT_S

        def keep_asking(_: int) -> None:
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
                while replicas() < 2 and time.monotonic() < deadline:
                    asked = client.completions.create(model="clerk", prompt="The bore", max_tokens=200, extra_body={"ignore_eos": True})
                    assert asked.choices[0].finish_reason == "length"

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(keep_asking, range(4)))
        assert replicas() == 2
