"""The strict front of the chat service, the engine's sizes, and export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from burnish.rollout.engine.vllm_openai import OpenAIApp, Pulse, Taken, context_length, kv_cache_bytes
from burnish.serving.admission import RequestAdmission
from burnish.serving.app import StrictChatApp
from burnish.serving.config import ServingConfig, serving_options
from burnish.serving.front import Front
from burnish.serving.keys import holder, listed_keys
from burnish.serving.wire import LARGEST_BODY, read_json
from burnish.trainer.models.exporting import export_folder
from burnish.trainer.models.folder import Origin, write_manifest
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.models.manifest import read_manifest

pytestmark = pytest.mark.unit


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with the body it was sent."""
    body = b""
    if scope["method"] == "POST":
        message = await receive()
        assert not message["more_body"]
        body = message["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(StrictChatApp(echo, lambda: ("m",))), base_url="http://service")


async def post(body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client().post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})


async def test_a_supported_request_arrives_unchanged() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "ü"}], "temperature": 0, "stop": ["."], "seed": 1}
    answer = await post(request)
    assert answer.status_code == 200
    assert answer.json() == request


async def test_a_parameter_without_effect_is_an_error_that_names_it() -> None:
    answer = await post({"model": "m", "messages": [], "modalities": ["text"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "modalities"
    assert "does not support the parameter 'modalities'" in answer.json()["error"]["message"]


def nested(levels: int) -> bytes:
    return b'{"messages": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": [], "temperature": NaN}', "NaN is no number of JSON"),
        (b'{"messages": [], "temperature": 1e999}', "1e999 is no number of JSON"),
        (json.dumps({"messages": [], "tools": [{}] * 1025}).encode(), "tools may have 1,024 entries, not 1,025"),
        (nested(64), "nested more than 64 levels"),
        (nested(900), "nested more than 64 levels"),
        (nested(100_000), "nested more than 64 levels"),
    ],
)
async def test_a_body_that_is_no_request_is_an_error(body: bytes, word: str) -> None:
    answer = await post(body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


async def test_a_body_that_is_too_large_is_refused() -> None:
    assert (await post(b" " * (LARGEST_BODY + 1))).status_code == 413


async def test_only_the_chat_routes_exist() -> None:
    assert (await client().get("/v1/models")).status_code == 200
    assert (await client().get("/health")).status_code == 200
    assert (await client().post("/tokenize")).status_code == 404
    assert (await client().get("/v1/chat/completions")).status_code == 405


KEYS = ("sk-first", "sk-second")


@pytest.fixture
def guarded(tmp_path: Path) -> httpx.AsyncClient:
    file = tmp_path / "keys"
    file.write_text("\n".join(KEYS) + "\n\n")
    app = StrictChatApp(echo, lambda: ("m",), Front(RequestAdmission(listed_keys("", str(file)))))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", "Bearer sk-firs", "Bearer sk-first2", "Basic sk-first", "sk-first", "Bearer é"]
)
async def test_without_a_key_nothing_is_read_and_nothing_is_told(guarded: httpx.AsyncClient, given: str | None) -> None:
    headers = {} if given is None else {b"Authorization": given.encode()}
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/nowhere"), ("DELETE", "/v1/models")):
        answer = await guarded.request(method, path, headers=headers, content=b"" if method == "GET" else b"{")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
        assert not any(key in answer.text for key in KEYS)
    assert (await guarded.get("/health")).status_code == 200


@pytest.mark.parametrize("given", ["Bearer sk-first", "Bearer sk-second", "bearer sk-first"])
async def test_each_key_lets_in(guarded: httpx.AsyncClient, given: str) -> None:
    assert (await guarded.get("/v1/models", headers={"Authorization": given})).status_code == 200


def test_keys_are_read_and_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_TEST_KEY", "sk-third")
    keys = listed_keys("BURNISH_TEST_KEY", "")
    assert keys is not None
    assert holder(keys.current(), [b"Bearer sk-third"]) == "key-1" and holder(keys.current(), [b"Bearer sk-first"]) is None
    assert "sk-third" not in repr(keys)
    file = tmp_path / "keys"
    for content, says in ((None, "cannot be read"), ("\n", "one key a line"), ("two words", "one key a line"), ("né", "one key a line")):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ValueError, match=says) as caught:
            listed_keys("", str(file))
        assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "whoever reaches the port could use the model; give --keys, --api-key-file"),
        ({"tls_cert": "c", "tls_key": "k"}, "whoever reaches the port could use the model; give --keys, --api-key-file"),
        ({"insecure": True}, "whoever reaches the port could use the model; give --keys, --api-key-file"),
        ({"api_key_file": "f"}, "the API key would travel in the clear; give --tls-cert"),
        ({"api_key_file": "f", "api_key_env": "E"}, "in one way"),
        ({"tls_cert": "c"}, "the key is missing"),
    ],
)
def test_no_chat_service_beyond_loopback_is_open(given: dict[str, Any], says: str) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.5", "h.example"):
        with pytest.raises(ValueError, match=says):
            serving_options(ServingConfig(), host=host, **given)
    serving_options(ServingConfig(), host="0.0.0.0", api_key_file="f", tls_cert="c", tls_key="k")
    serving_options(ServingConfig(), host="0.0.0.0", api_key_env="E", insecure=True)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}],
        [{"type": "text", "text": "look"}, {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}}],
        [{"image_url": "http://127.0.0.1:1/"}],
        ["text"],
        {"type": "image_url"},
    ],
)
async def test_a_client_cannot_have_anything_fetched(content: Any) -> None:
    answer = await post({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"])
async def test_what_a_page_in_a_browser_can_send_unasked_is_refused(kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = await client().post("/v1/chat/completions", content=b'{"model": "m", "messages": []}', headers=headers)
    assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["error"]["message"]
    typed = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await client().post("/v1/chat/completions", content=b'{"model": "m", "messages": []}', headers=typed)).status_code == 200


async def test_messages_of_text_parts_pass() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (await post({"model": "m", "messages": [{"role": "user", "content": parts}, {"role": "assistant"}]})).status_code == 200


def test_the_context_is_what_the_model_was_made_for_at_most() -> None:
    assert context_length({"max_position_embeddings": 1024}, None) == 1024
    assert context_length({"max_position_embeddings": 8192}, None) == 2048
    assert context_length({"max_position_embeddings": 8192}, 4096) == 4096
    with pytest.raises(ValueError, match="made for 1024"):
        context_length({"max_position_embeddings": 1024}, 2000)


def test_the_cache_holds_keys_and_values_of_every_layer_in_whole_blocks() -> None:
    config = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 256}
    per_token = 2 * 4 * 2 * 32 * 4  # keys and values, layers, heads, head size, bytes
    assert kv_cache_bytes(config, 33) == per_token * 32 * 3  # two blocks and one spare


def test_an_export_is_the_model_without_the_training_state(tmp_path: Path) -> None:
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)
    record = new_model(["some text"], tmp_path / "models" / "tiny", size)
    checkpoint = tmp_path / "rft-3"
    shutil.copytree(tmp_path / "models" / "tiny", checkpoint / "model")
    (checkpoint / "trainer").mkdir()
    args = {"enable_thinking": False}
    write_manifest(checkpoint / "model", Origin(name="tiny", stage="rft", source="test", template_args=args))
    exported = export_folder(checkpoint, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "burnish.json",
        "README.md",
    }
    assert exported.digest == record.digest
    assert (read_manifest(tmp_path / "out").name, read_manifest(tmp_path / "out").template_args) == ("out", args)


def test_an_export_of_weights_that_changed_is_refused(tmp_path: Path) -> None:
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)
    new_model(["some text"], tmp_path / "a", size, seed=0)
    new_model(["some text"], tmp_path / "b", size, seed=1)
    shutil.copyfile(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(ValueError, match="changed after it was written"):
        export_folder(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_replica_is_well_while_its_engine_samples_or_is_asked_for_nothing_and_ill_when_it_hangs() -> None:
    now, asked = [0.0], [True]

    class Engine:
        output_processor = SimpleNamespace(has_unfinished_requests=lambda: asked[0])

        async def check_health(self) -> None:
            """vLLM finds nothing wrong with one that only hangs."""

    service = OpenAIApp(echo, Engine(), Pulse(300.0, lambda: now[0]), Taken())

    async def is_well(seconds: float, tokens: int = 0) -> None:
        for _ in range(round(seconds / 10)):
            now[0] += 10
            service.pulse.sampled(tokens)
            await service.check_health()

    await is_well(1000, tokens=1)  # slowly, and never to an end
    await is_well(290)
    asked[0] = False  # whoever had asked gave up; nobody knows more of the engine for it
    await is_well(9000)
    asked[0] = True
    with pytest.raises(TimeoutError, match="the engine hangs: asked for 300 s, it has sampled no token for any request"):
        await is_well(10)
    await is_well(10, tokens=1)


def test_the_tokens_of_a_request_are_those_of_all_its_answers() -> None:
    taken = Taken()
    taken.begin("one")
    for name, tokens in (("chatcmpl-one", 1), ("chatcmpl-one", 2), ("chatcmpl-other", 5)):
        taken.note(SimpleNamespace(external_req_id=name, prompt_len=7), tokens)
    assert taken.read("one") == (7, 3)
    taken.begin("two")
    for name, tokens in (("cmpl-two-0", 1), ("cmpl-two-1", 1), ("cmpl-two-1", 4), ("warm-up", 1), ("x", 1)):
        taken.note(SimpleNamespace(external_req_id=name, prompt_len=5), tokens)
    assert taken.read("two") == (10, 6), "two prompts"
    taken.forget("two")
    taken.forget("one")
    taken.note(SimpleNamespace(external_req_id="chatcmpl-one", prompt_len=7), 1)
    assert taken._of == {}, "nothing is kept of what has ended"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"stop": [' + b"[]," * 300_000 + b"[]]}", "more than 300,000 values"),
        (b'{"stop": ["\\\\", ' + b'"",' * 300_000 + b'""]}', "more than 300,000 values"),
        (b'{"a": ' + b'{"":' * 300_000, "more than 300,000 values"),
        (('{"stop": [' + "[]," * 300_000).encode("utf-16"), "utf-8"),
        (b"[" * 70 + b"]" * 70, "nested more than 64 levels deep"),
        (b"[" * 9999 + b"]" * 9999, "nested more than 64 levels deep"),
    ],
)
def test_a_body_of_very_many_values_is_refused_before_they_are_made(body: bytes, count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "levels" not in count:
        monkeypatch.setattr(json, "loads", lambda *args, **more: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=count):
        read_json(body)


def test_what_a_text_holds_is_no_value() -> None:
    said = '[{,"\\' * 100_000
    assert read_json(json.dumps({"messages": [{"role": "user", "content": said}]}).encode())["messages"][0]["content"] == said
    assert read_json(b"\xef\xbb\xbf[1]") == [1]
