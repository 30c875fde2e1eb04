"""What the environment of a shell says must not reach what runs on this machine: RAY_ADDRESS and HTTP proxies."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.integration.http_stub import Reply, Request, Stub, serve

from burnish.cluster import ray_session
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Message, Task
from burnish.recipe.placement import Placement
from burnish.rewards.aws.reward_lambda import LambdaOptions, reward_lambda
from burnish.rewards.plugin import make_scorer
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput, Score
from burnish.serving.config import ServingConfig
from burnish.serving.deploy import is_ready, start_ray

pytestmark = pytest.mark.integration

NOWHERE = "127.0.0.1:9"
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
EPISODE = RewardInput("train-1/0", Task("train-1", 1), (Message("user", "2 + 2?"), Message("assistant", "4")), 0.0)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell set up for another network and another cluster."""
    use_proxy(monkeypatch, f"http://{NOWHERE}")
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)


def use_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, url)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


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


def judged(request: Request, number: int) -> Reply:
    """What a judge answers, and what a reward Lambda does."""
    if isinstance(request.body, list):
        return Reply([{"id": row["id"], "aggregate_reward_score": 0.75} for row in request.body])
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "0.75"}}
    return Reply({"id": "c", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]})


async def by_judge(url: str, **options: Any) -> Score:
    grader = {"type": "score_model", "name": "rate", "model": "judge", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
    params = {"grader": grader, "base_url": f"{url}/v1", "retries": 0, **options}
    return await make_scorer("burnish/openai-grader-v1", params=params).score(EPISODE)


async def by_judge_of_the_environment(url: str) -> Score:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        patch.setenv("JUDGE_KEY", "test")
        return await by_judge(url, base_url=None, api_key_env="JUDGE_KEY")


async def by_url(url: str) -> Score | Failure:
    return (await reward_lambda([EPISODE], options=LambdaOptions(handler=f"{url}/score")))[0]


async def by_aws(url: str) -> Score | Failure:
    return (await reward_lambda([EPISODE], options=LambdaOptions(handler="my-reward", endpoint_url=url, region="us-east-1")))[0]


def places(stub: Stub) -> list[str]:
    """Whom each request was for: the host in it where it came to a proxy, "" where it came directly."""
    return [request.path.partition("://")[2].partition("/")[0] for request in stub.requests]


@pytest.mark.parametrize("ask", [by_judge, by_judge_of_the_environment, by_url, by_aws])
def test_what_judges_on_this_machine_is_asked_through_no_proxy(shell: None, ask: Any) -> None:
    with serve(judged) as stub:
        asked: Coroutine[Any, Any, Score | Failure] = ask(stub.url)
        assert asyncio.run(asked) == Score(0.75)
    assert places(stub) == [""]


@pytest.mark.parametrize(("ask", "host"), [(by_judge, "judges.invalid"), (by_url, "rewards.invalid")])
def test_what_judges_elsewhere_is_asked_through_the_proxy_of_the_environment(ask: Any, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(judged) as proxy:
        use_proxy(monkeypatch, proxy.url)
        assert asyncio.run(ask(f"http://{host}")) == Score(0.75)
        assert places(proxy) == [host]
        monkeypatch.setenv("no_proxy", "invalid")
        with pytest.raises((EpisodeFailure, AssertionError)):
            assert isinstance(asyncio.run(ask(f"http://{host}")), Score)
        assert places(proxy) == [host]


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])  # the other is of a network for documents: nobody answers
def test_a_service_over_grpc_is_asked_through_no_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        use_proxy(monkeypatch, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with pytest.raises(EpisodeFailure) as caught:
            asyncio.run(RemoteVerifier("verdict", f"{host}:9", deadline_s=2.0).score(EPISODE))
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert caught.value.failure.kind in (FailureKind.VERIFIER_UNAVAILABLE, FailureKind.VERIFIER_TIMEOUT)


def test_a_run_starts_a_ray_of_its_own_whatever_ray_address_says(shell: None) -> None:
    import ray

    with ray_session(Placement("cpu", cpus=1, object_store_mb=128)):
        assert ray.is_initialized()
        assert NOWHERE not in ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


def test_serving_starts_a_ray_of_its_own_whatever_ray_address_says(shell: None) -> None:
    import ray

    assert start_ray(ServingConfig(), 1)
    try:
        assert NOWHERE not in ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def test_serving_on_a_gpu_that_is_not_there_is_refused_at_once() -> None:
    import torch

    if torch.cuda.device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device cuda: torch sees no GPU on this machine; use --device cpu"):
        start_ray(ServingConfig(device="cuda"), 1)
