"""A version that scales with its load, on Ray Serve's own autoscaler and real engines.

Engines are held still while requests are to count as under way: one that writes leaves the other no processor to start on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from ray import serve
from tests.integration.replicas import engine_of, replicas_of

from burnish.serving import fleet
from burnish.serving.config import ServingConfig
from burnish.serving.deployment import VersionTable
from burnish.serving.routes import app_name
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SIZE = ModelSize(hidden=64, layers=2, heads=2, intermediate=96, vocab_size=300, max_position=256)
TEXT = """
service.port = 0

[models.clerk.versions.v1]
model = "{folder}/tiny"
autoscaling = {{max_replicas = 2, target_ongoing_requests = 1, upscale_delay_s = 1, downscale_delay_s = 2}}
"""
QUICKLY: dict[str, Any] = {"look_back_period_s": 3.0, "metrics_interval_s": 1.0}
"""Serve itself takes the mean of half a minute, and hears of it every ten seconds."""
TOKENS = 200
WAIT_S = 600.0


def replicas() -> dict[str, int]:
    """How many there are in each of Serve's states."""
    deployment = serve.status().applications[app_name("clerk:v1")].deployments["model"]
    return {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen: {replicas()}"
        time.sleep(0.1)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    told = fleet.replicas_of

    def quickly(table: VersionTable, options: ServingConfig) -> dict[str, Any]:
        return {"autoscaling_config": told(table, options)["autoscaling_config"] | QUICKLY}

    monkeypatch.setattr(fleet, "replicas_of", quickly)
    new_model([f"The bore of part {i} measures {i * 0.37:.3f} mm." for i in range(60)], tmp_path / "tiny", SIZE)
    (tmp_path / "deployment.toml").write_text(TEXT.format(folder=tmp_path))
    with fleet.start_deployment(tmp_path / "deployment.toml", print) as running:
        yield running.url


def asked(url: str) -> tuple[str, str]:
    """A stream's text, and how it ended."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=WAIT_S) as client:
        chunks = client.completions.create(
            model="clerk", prompt="The bore", max_tokens=TOKENS, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        said = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(choice.text for choice in said), str(said[-1].finish_reason)


def under_way(url: str) -> float:
    with httpx.Client(trust_env=False) as client:
        page = client.get(f"{url}/metrics", timeout=120).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("burnish_requests_under_way{")) - 1  # but this one


@contextmanager
def still(engine: psutil.Process) -> Iterator[None]:
    """Have an engine do nothing meanwhile."""
    engine.suspend()
    try:
        yield
    finally:
        if engine.is_running():
            engine.resume()


def test_engines_are_added_with_the_load_and_end_after_it_having_answered_what_they_have(url: str) -> None:
    whole = asked(url)
    assert whole[1] == "length"
    assert replicas() == {"RUNNING": 1}
    (first,) = replicas_of("clerk:v1")
    with ThreadPoolExecutor(5) as pool, ExitStack() as held:
        with still(engine_of(first)):
            early = [pool.submit(asked, url) for _ in range(4)]
            until(lambda: replicas().get("RUNNING") == 2, "the second engine")
            (second,) = [one for one in replicas_of("clerk:v1") if one != first]
            held.enter_context(still(engine_of(second)))
            late = pool.submit(asked, url)  # goes where nothing waits yet
            until(lambda: under_way(url) == 5, "asking")
            assert replicas() == {"RUNNING": 2}
        assert [one.result(WAIT_S) for one in early] == [whole] * 4
        until(lambda: replicas().get("STOPPING") == 1, "the end of an engine")
        assert second.is_running() and not late.done(), "it ends while it has something to answer"
        held.close()
        assert late.result(WAIT_S) == whole
    until(lambda: not second.is_running() and replicas() == {"RUNNING": 1}, "its end")
    assert first.is_running() and asked(url) == whole
