"""The service over https with the real parts, as its clients ask it: OpenAI's, sync and async, and boto3's."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from tests.integration.certificates import Authority, Pair
from tests.integration.replicas import replica_of
from tests.integration.taught import Turn, taught_model

from burnish.serving.config import ServingConfig
from burnish.serving.deploy import is_ready, start_serving
from burnish.serving.fleet import DeploymentHandle, start_deployment
from burnish.serving.key_files import new_key

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

WAIT_S = 300.0
GREETING, SIZE = "How are you?", "How big is the bore of part 17?"
ANSWERS = {GREETING: "I am well."}
PROPERTIES = {"part": {"type": "integer"}, "feature": {"type": "string"}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "measure", "parameters": {"type": "object", "properties": PROPERTIES}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "measure", "arguments": '{"part": 17, "feature": "bore"}'}}
ASKED: list[Any] = [{"role": "user", "content": SIZE}]
MEASURED: list[Any] = [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1", "content": "7.4"}]
TURNS = [Turn(ASKED, TOOLS, 'measure(17, "bore")'), Turn([*ASKED, *MEASURED], TOOLS, "It is 7.4 mm.")]
REFUSAL = "I cannot help with that."
POLICY = f"""
name = "shop"
version = 2
messages.refuse = "{REFUSAL}"
categories.weapons = {{ kind = "safety", action = "refuse", always_on = true }}

[[words]]
name = "agents"
category = "weapons"
words = ["nerve gas"]

[[tools]]
tool = "measure"
action = "allow"
"""
DEPLOYMENT = """
[service]
port = 0
keys_file = "{folder}/keys.toml"
policy = "{folder}/shop.toml"
tls_cert = "{pair.cert}"
tls_key = "{pair.key}"

[models.clerk.versions.v1]
model = "{folder}/clerk"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("https")
    taught_model(folder / "clerk", ANSWERS, turns=TURNS)
    return folder


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.sign("server")


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    return new_key(folder / "keys.toml", "team", routes=("chat", "models", "guardrail"))


@pytest.fixture(scope="module")
def deployed(folder: Path, pair: Pair, key: str) -> Iterator[DeploymentHandle]:
    (folder / "shop.toml").write_text(POLICY)
    file = folder / "deployment.toml"
    file.write_text(DEPLOYMENT.format(folder=folder, pair=pair))
    with start_deployment(file, print) as handle:
        yield handle


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


@dataclass(frozen=True)
class Client:
    """OpenAI's client, sync or async, asked in one way."""

    one: openai.OpenAI | openai.AsyncOpenAI

    async def chat(self, messages: list[Any], **fields: Any) -> Any:
        """An answer, or the whole list of a stream's chunks."""
        asked: dict[str, Any] = {"model": "clerk", "messages": messages, "temperature": 0, **fields}
        if isinstance(self.one, openai.OpenAI):
            create: Callable[..., Any] = self.one.chat.completions.create
            return await asyncio.to_thread(lambda: list(create(**asked)) if fields.get("stream") else create(**asked))
        found: Any = await self.one.chat.completions.create(**asked)
        return [chunk async for chunk in found] if fields.get("stream") else found

    async def models(self) -> list[str]:
        if isinstance(self.one, openai.OpenAI):
            return [model.id for model in await asyncio.to_thread(self.one.models.list)]
        return [model.id async for model in self.one.models.list()]


def client(kind: str, url: str, key: str, authority: Authority) -> Client:
    common: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0, "timeout": WAIT_S}
    verified: dict[str, Any] = {"verify": trusting(authority), "trust_env": False}
    if kind == "sync":
        return Client(openai.OpenAI(**common, http_client=openai.DefaultHttpxClient(**verified)))
    return Client(openai.AsyncOpenAI(**common, http_client=openai.DefaultAsyncHttpxClient(**verified)))


def test_burnish_serve_answers_over_https_and_finishes_what_it_has_at_its_end(folder: Path, authority: Authority, pair: Pair) -> None:
    """Before a deployment is here: a Ray serves one thing."""
    options = ServingConfig(tls_cert=pair.cert, tls_key=pair.key)
    before = set(psutil.Process().children(recursive=True))
    handle = start_serving(folder / "clerk", port=0, config=options)
    with handle, ThreadPoolExecutor(1) as pool:
        assert handle.url.startswith("https://") and is_ready(handle.url)
        asking = client("sync", handle.url, "none", authority)
        assert isinstance(asking.one, openai.OpenAI)
        asked: dict[str, Any] = {"model": handle.name, "messages": [{"role": "user", "content": GREETING}], "max_tokens": 100}
        stream = asking.one.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
        first = next(iter(stream))
        (engine,) = [one for one in set(psutil.Process().children(recursive=True)) - before if "VLLM" in one.name() or _spawned(one)]
        engine.suspend()
        threading.Timer(3.0, engine.resume).start()
        rest = pool.submit(list, stream)
        handle.stop()
        choices = [choice for chunk in [first, *rest.result(WAIT_S)] for choice in chunk.choices]
    assert choices[-1].finish_reason == "length"
    assert not is_ready(handle.url)


def _spawned(process: psutil.Process) -> bool:
    return "multiprocessing.spawn" in " ".join(process.cmdline())


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_conversation_with_openais_client(deployed: DeploymentHandle, key: str, authority: Authority, kind: str) -> None:
    asking = client(kind, deployed.url, key, authority)
    assert await asking.models() == ["clerk", "clerk:v1"]
    hello: list[Any] = [{"role": "user", "content": GREETING}]
    whole = await asking.chat(hello, seed=1)
    assert [(choice.message.content, choice.finish_reason) for choice in whole.choices] == [("I am well.", "stop")]
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = await asking.chat(hello, stream=True, stream_options={"include_usage": True})
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "I am well."
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert (await asking.chat([{"role": "user", "content": "nerve gas"}])).choices[0].message.content == REFUSAL
    with pytest.raises(openai.NotFoundError):
        await asking.chat(hello, model="nobody")
    with pytest.raises(openai.BadRequestError, match="would say what the guardrail policy holds back"):
        await asking.chat(hello, logprobs=True)
    with pytest.raises(openai.AuthenticationError):
        await client(kind, deployed.url, "bk-nobody", authority).models()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_loop_of_tool_calls_with_openais_client(
    deployed: DeploymentHandle, key: str, authority: Authority, kind: str, stream: bool
) -> None:
    asking, talk = client(kind, deployed.url, key, authority), list(ASKED)
    called = await asking.chat(talk, tools=TOOLS, tool_choice="auto", stream=stream)
    choices = [choice for chunk in called for choice in chunk.choices] if stream else called.choices
    (call,) = [call for one in choices for call in (one.delta if stream else one.message).tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("measure", '{"part": 17, "feature": "bore"}')
    assert choices[-1].finish_reason == "tool_calls"
    talk.append({"role": "assistant", "tool_calls": [call.model_dump(exclude={"index"})]})
    talk.append({"role": "tool", "tool_call_id": call.id, "content": "7.4"})
    answer = (await asking.chat(talk, tools=TOOLS, tool_choice="auto")).choices[0]
    assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == ("It is 7.4 mm.", None, "stop")


def test_boto3_calls_apply_guardrail_with_a_key_of_the_service(
    deployed: DeploymentHandle, key: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3, config = pytest.importorskip("boto3"), pytest.importorskip("botocore.config").Config
    once = config(retries={"max_attempts": 0}, proxies={})

    def apply(text: str, bearer: str) -> Any:
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", bearer)
        bedrock = boto3.client("bedrock-runtime", endpoint_url=deployed.url, region_name="eu-central-1", verify=authority.ca, config=once)
        content = [{"text": {"text": text}}]
        return bedrock.apply_guardrail(guardrailIdentifier="shop", guardrailVersion="2", source="INPUT", content=content)

    blocked = apply("Where is nerve gas kept?", key)
    assert (blocked["action"], blocked["outputs"]) == ("GUARDRAIL_INTERVENED", [{"text": REFUSAL}])
    assert apply("Where is coffee kept?", key)["action"] == "NONE"
    with pytest.raises(Exception, match="AccessDenied"):
        apply("Where is coffee kept?", "bk-nobody")


def test_who_does_not_know_the_authority_or_asks_in_the_clear_gets_nothing(deployed: DeploymentHandle, authority: Authority) -> None:
    assert deployed.url.startswith("https://")
    with httpx.Client(trust_env=False, timeout=WAIT_S, verify=trusting(authority)) as asking:
        assert asking.get(f"{deployed.url}/v1/models").status_code == 401
    with httpx.Client(trust_env=False, timeout=WAIT_S) as asking:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            asking.get(f"{deployed.url}/health")
        with pytest.raises(httpx.HTTPError):
            asking.get(f"{deployed.url.replace('https', 'http')}/health")


def test_health_and_readiness_say_that_the_engine_is_gone_and_that_it_is_back(deployed: DeploymentHandle, authority: Authority) -> None:
    with httpx.Client(trust_env=False, timeout=WAIT_S, verify=trusting(authority)) as asking:

        def probed() -> list[int]:
            return [asking.get(f"{deployed.url}{path}").status_code for path in ("/health", "/ready")]

        def until(wanted: list[int]) -> None:
            deadline = time.monotonic() + WAIT_S
            while (found := probed()) != wanted:
                assert time.monotonic() < deadline, f"{found}, not {wanted}"
                time.sleep(0.2)

        until([200, 200])
        replica_of("clerk:v1").kill()
        until([503, 503])
        until([200, 200])
