"""The strict front of the chat service, the engine's sizes, and export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from burnish.rollout.engine.vllm_openai import context_length, kv_cache_bytes
from burnish.serving.app import LARGEST_BODY, StrictChatApp
from burnish.serving.export import export_checkpoint
from burnish.trainer.models.folder import read_record
from burnish.trainer.models.importing import ModelSize, new_model

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
    return httpx.AsyncClient(transport=httpx.ASGITransport(StrictChatApp(echo)), base_url="http://service")


async def post(body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client().post("/v1/chat/completions", content=content)


async def test_a_supported_request_arrives_unchanged() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "ü"}], "temperature": 0, "stop": ["."], "seed": 1}
    answer = await post(request)
    assert answer.status_code == 200
    assert answer.json() == request


async def test_a_parameter_without_effect_is_an_error_that_names_it() -> None:
    answer = await post({"model": "m", "messages": [], "response_format": {}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert "does not support the parameter 'response_format'" in answer.json()["error"]["message"]


def nested(levels: int) -> bytes:
    return b'{"messages": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
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
    exported = export_checkpoint(checkpoint, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
        "burnish.json",
    }
    assert exported.weights_sha256 == record.weights_sha256
    assert read_record(tmp_path / "out").name == "out"


def test_an_export_of_weights_that_changed_is_refused(tmp_path: Path) -> None:
    size = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)
    new_model(["some text"], tmp_path / "a", size, seed=0)
    new_model(["some text"], tmp_path / "b", size, seed=1)
    shutil.copyfile(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(ValueError, match="changed after it was written"):
        export_checkpoint(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
