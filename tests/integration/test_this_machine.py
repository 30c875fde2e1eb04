"""What the environment of a shell says must not reach what runs on this machine: RAY_ADDRESS and HTTP proxies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.integration.http_stub import Reply, serve

from burnish.cluster import ray_session
from burnish.envs.types import Message, Task
from burnish.recipe.placement import Placement
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput
from burnish.serving.config import ServingConfig
from burnish.serving.deploy import _start_ray, is_ready

pytestmark = pytest.mark.integration

NOWHERE = "127.0.0.1:9"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell set up for another network and another cluster."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{NOWHERE}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)


@pytest.fixture
def health() -> Iterator[str]:
    """The address of a server that is well."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_readiness_check_of_a_service_goes_through_no_proxy(shell: None, health: str) -> None:
    assert is_ready(health)
    assert not is_ready(f"http://{NOWHERE}")


def test_a_judge_on_this_machine_is_asked_through_no_proxy(shell: None) -> None:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "0.75"}}
    answer = Reply({"id": "c", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]})
    grader = {"type": "score_model", "name": "rate", "model": "judge", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
    episode = RewardInput("train-1/0", Task("train-1", 1), (Message("user", "2 + 2?"), Message("assistant", "4")), 0.0)
    with serve(lambda request, number: answer) as stub:
        params = {"grader": grader, "base_url": f"{stub.url}/v1", "retries": 0}
        score = asyncio.run(make_scorer("burnish/openai-grader-v1", params=params).score(episode))
    assert (score.value, len(stub.requests)) == (0.75, 1)


def test_a_run_starts_a_ray_of_its_own_whatever_ray_address_says(shell: None) -> None:
    import ray

    with ray_session(Placement("cpu", cpus=1, object_store_mb=128)):
        assert ray.is_initialized()
        assert NOWHERE not in ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


def test_serving_starts_a_ray_of_its_own_whatever_ray_address_says(shell: None) -> None:
    import ray

    assert _start_ray(ServingConfig())
    try:
        assert NOWHERE not in ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def test_serving_on_a_gpu_that_is_not_there_is_refused_at_once() -> None:
    import torch

    if torch.cuda.device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device cuda: torch sees no GPU on this machine; use --device cpu"):
        _start_ray(ServingConfig(device="cuda"))
