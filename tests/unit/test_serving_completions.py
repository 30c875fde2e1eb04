"""Completions: prompts as they stand, through the keys, limits, policy, meter and log that chat goes through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.types import Receive, Scope, Send
from tests.unit.guard_policy import TOML

from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import load_policy
from burnish.serving.admission import Refused, RequestAdmission
from burnish.serving.app import chat_service
from burnish.serving.audit import Audit, Books
from burnish.serving.front import Front
from burnish.serving.key_files import new_key
from burnish.serving.keys import Filed
from burnish.serving.requests import read_completion_request
from burnish.serving.spending import Spending
from burnish.serving.wire import COMPLETIONS, answer, read_body

pytestmark = pytest.mark.unit

SECRET = "sesame-opens-nothing"
READ = 5
"""Tokens of every prompt, as the model here counts."""


class Model:
    """Answers every prompt with the same words, as vLLM's application does: choices of all prompts in one row of indices."""

    def __init__(self, *words: str) -> None:
        self.words = words or ("It ", "is.")
        self.asked = list[dict[str, Any]]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == COMPLETIONS
        request = json.loads(await read_body(receive))
        self.asked.append(request)
        prompts, each = (len(request["prompt"]) if isinstance(request["prompt"], list) else 1), request.get("n") or 1
        kind = b"text/event-stream" if request.get("stream") else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if request.get("stream"):
            for row in self._rows(prompts * each):
                await send({"type": "http.response.body", "body": b"data: " + json.dumps(row).encode() + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return
        choices = [{"index": i, "text": "".join(self.words), "logprobs": None, "finish_reason": "stop"} for i in range(prompts * each)]
        usage = self._usage(READ * prompts, len(self.words) * prompts * each)
        row = {"id": "own", "object": "text_completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
        await send({"type": "http.response.body", "body": json.dumps(row).encode()})

    def _rows(self, choices: int) -> Iterator[dict[str, Any]]:
        head = {"id": "own", "object": "text_completion", "created": 1, "model": "m"}
        for written, word in enumerate(self.words, 1):
            for i in range(choices):
                finish = "stop" if written == len(self.words) else None
                choice = {"index": i, "text": word, "logprobs": None, "finish_reason": finish}
                yield {**head, "choices": [choice], "usage": self._usage(READ, written)}

    def _usage(self, read: int, written: int) -> dict[str, int]:
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Service:
    """A service with one key for completions, an audit log, and a policy where one is given."""

    def __init__(self, folder: Path, *words: str, guard: Guard | None = None, prompts: bool = False, **key: Any) -> None:
        keys, self.log, self.model = folder / "keys.toml", folder / "audit.jsonl", Model(*words)
        self.key = new_key(keys, "team", **{"routes": ("completions",), **key})
        front = Front(RequestAdmission(Filed(keys), 4, Spending(keys)), Books(Audit(self.log, prompts)))
        self.app = chat_service(self.model, lambda: ("m",), front, guard)

    def openai(self) -> AsyncOpenAI:
        http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")
        return AsyncOpenAI(base_url="http://service/v1", api_key=self.key, http_client=http, max_retries=0)

    async def post(self, **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service", headers=headers) as client:
            return await client.post(COMPLETIONS, json={"model": "m", **fields})

    def line(self) -> dict[str, Any]:
        (line,) = map(json.loads, self.log.read_text().splitlines())
        assert isinstance(line, dict)
        return line


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    file = tmp_path_factory.mktemp("policy") / "bank.toml"
    file.write_text(TOML)
    return Guard(load_policy(file))


async def test_a_completion_is_answered_counted_and_logged_without_its_words(tmp_path: Path) -> None:
    service = Service(tmp_path)
    answer = await service.openai().completions.create(model="m", prompt=SECRET, max_tokens=4, echo=False)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("It is.", "stop")
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    line = service.line()
    assert (line["route"], line["request"], line["status"], line["prompt_tokens"], line["completion_tokens"]) == (
        "completions", answer.id, 200, READ, 2,
    )  # fmt: skip
    assert SECRET not in service.log.read_text()
    assert service.model.asked == [{"model": "m", "prompt": SECRET, "max_tokens": 4, "echo": False}]


async def test_a_stream_of_several_prompts_counts_every_prompt_once_and_every_answer(tmp_path: Path) -> None:
    service = Service(tmp_path)
    texts = dict.fromkeys(range(4), "")
    async for chunk in await service.openai().completions.create(model="m", prompt=["a", "b"], n=2, stream=True):
        assert chunk.usage is None, "it was not asked for"
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == dict.fromkeys(range(4), "It is.")
    line = service.line()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (2 * READ, 4 * 2)
    assert line["first_s"] >= 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "stop": ["x"] * 65}, "stop"),
        ({"prompt": "a", "stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"prompt": "a", "top_k": 2**63}, "top_k"),
        ({"prompt": "a", "min_tokens": -(2**64)}, "min_tokens"),
        ({"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ],
)
async def test_what_is_no_completion_request_is_the_clients_error(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    service = Service(tmp_path)
    answer = await service.post(**fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert service.model.asked == []


def test_a_prompt_of_half_a_character_is_the_clients_error() -> None:
    with pytest.raises(Refused, match="half a character"):
        read_completion_request(b'{"model": "m", "prompt": ["a", "\\ud800"]}')


async def test_token_ids_reach_the_model_as_they_are(tmp_path: Path) -> None:
    service = Service(tmp_path)
    for prompt in ([1, 2, 3], [[1, 2], [3]]):
        assert (await service.post(prompt=prompt)).status_code == 200
    assert [asked["prompt"] for asked in service.model.asked] == [[1, 2, 3], [[1, 2], [3]]]


async def test_a_key_calls_completions_only_where_its_routes_say_so_and_each_answer_counts(tmp_path: Path) -> None:
    (tmp_path / "chat").mkdir()
    chat = Service(tmp_path / "chat", routes=("chat", "models"))
    assert (await chat.post(prompt="a")).status_code == 403 and chat.model.asked == []
    few = Service(tmp_path, parallel=3)
    assert (await few.post(prompt=["a", "b"], n=2)).status_code == 400
    assert (await few.post(prompt=["a", "b", "c"])).status_code == 200


async def test_prompts_are_in_the_log_where_that_is_asked_for(tmp_path: Path) -> None:
    service = Service(tmp_path, prompts=True)
    await service.post(prompt=["a", "b"])
    assert service.line()["prompt"] == ["a", "b"] and "messages" not in service.line()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_policy_holds_prompts_and_completions(tmp_path: Path, guard: Guard, stream: bool) -> None:
    service = Service(tmp_path, "Write to ", "jo@example.com", " today.", guard=guard)
    created: Any = await service.openai().completions.create(model="m", prompt=["How?", "I am ann@example.com."], stream=stream)
    texts = dict.fromkeys(range(2), "")
    for row in [chunk async for chunk in created] if stream else [created]:
        for choice in row.choices:
            texts[choice.index] += choice.text
    assert texts == dict.fromkeys(range(2), "Write to [EMAIL] today.")
    (asked,) = service.model.asked
    assert asked["prompt"] == ["How?", "I am [EMAIL]."]
    blocked: Any = await service.openai().completions.create(
        model="m", prompt=["How?", "How do I build a pipe bomb at home?"], stream=stream
    )
    (choice,) = [one for row in ([chunk async for chunk in blocked] if stream else [blocked]) for one in row.choices]
    assert (choice.text, choice.finish_reason) == ("I cannot help with that.", "content_filter")
    assert len(service.model.asked) == 1


async def test_what_the_policy_cannot_read_or_would_be_told_by_is_refused(tmp_path: Path, guard: Guard) -> None:
    service = Service(tmp_path, guard=guard)
    for fields, param in (({"prompt": [1, 2]}, "prompt"), ({"prompt": [[1]]}, "prompt"), ({"prompt": "a", "logprobs": 1}, "logprobs")):
        answer = await service.post(**fields)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert service.model.asked == []


@pytest.mark.parametrize("logprobs", [0, False, 0.0])
async def test_no_log_probabilities_are_told_beside_a_policy_where_none_of_other_tokens_are_asked_for(
    tmp_path: Path, guard: Guard, logprobs: Any
) -> None:
    """vLLM's completions then have those of the tokens that were sampled, and so all that the policy takes out of the text."""
    service = Service(tmp_path, guard=guard)
    answer = await service.post(prompt="a", logprobs=logprobs)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "logprobs" and service.model.asked == []
    assert (await service.post(prompt="a", logprobs=None)).status_code == 200


@pytest.mark.parametrize("chat", [True, False])
async def test_a_request_is_read_once_and_handed_on(guard: Guard, monkeypatch: pytest.MonkeyPatch, chat: bool) -> None:
    """Each application read the body again and wrote it anew: a second of everybody's time for a request of a few megabytes."""
    read, written, loads, dumps = list[object](), list[object](), json.loads, json.dumps
    told = dict[str, Any]()

    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        told.update(loads(await read_body(receive)))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}, "text": "yes"}
        await answer(send, 200, dumps({"id": "own", "choices": [choice], "usage": {}}).encode())

    def counted(many: list[object], does: Any) -> Any:
        def did(value: Any, *args: Any, **kwargs: Any) -> Any:
            if "How is it?" in str(value):
                many.append(value)
            return does(value, *args, **kwargs)

        return did

    monkeypatch.setattr(json, "loads", counted(read, loads))
    monkeypatch.setattr(json, "dumps", counted(written, dumps))
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "How is it?"}]} if chat else {"prompt": "How is it?"}
    body = dumps({"model": "m", "store": False, **asked}) if chat else dumps({"model": "m", **asked})
    service = chat_service(model, lambda: ("m",), Front(), guard)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://service") as client:
        path = "/v1/chat/completions" if chat else COMPLETIONS
        found = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert found.status_code == 200, found.text
    assert (len(read), len(written)) == (1, 1) and told == {"model": "m", **asked}
