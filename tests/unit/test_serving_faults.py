"""What a client is told when an engine, a replica or the service fails, or is late: OpenAI's shape, and nothing of what is inside."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RequestCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from burnish.serving.app import chat_service
from burnish.serving.audit import Books
from burnish.serving.event_stream import event
from burnish.serving.front import Front
from burnish.serving.gateway import Router
from burnish.serving.routes import VersionShare, names
from burnish.serving.wire import CHAT, answer

pytestmark = pytest.mark.unit

INSIDE = "sesame: /srv/models/secret, block 17"
"""What stands in errors and may reach nobody."""
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
CHUNK = event({"id": "own", "choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": None}]})
BEGUN: list[Any] = [[START], [{"type": "http.response.body", "body": CHUNK, "more_body": True}]]


def fault() -> RayTaskError:
    return RayTaskError("answer", f"Traceback: {INSIDE}", RuntimeError(INSIDE))


class Call:
    def __init__(self, gives: list[Any]) -> None:
        self._gives, self._cancelled = gives, asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for one in self._gives:
            if isinstance(one, Exception):
                raise one
            if one is None:
                await self._cancelled.wait()
                raise RequestCancelledError("1")
            yield one

    def cancel(self) -> None:
        self._cancelled.set()


class Version:
    """A version's handle: what its replicas give, one after the other. None: nothing comes until the call is cancelled."""

    def __init__(self, *replicas: list[Any]) -> None:
        self._replicas = list(replicas)

    def options(self, **_: Any) -> Version:
        return self

    def remote(self, *_: Any) -> Call:
        return Call(self._replicas.pop(0))


def behind(front: Front, *replicas: list[Any]) -> ASGIApp:
    """A gateway in front of these."""
    router = Router(front.books, 60)
    router.routes, router._handles = {"m": (VersionShare("v1", 1.0),)}, {"m:v1": Version(*replicas)}
    return chat_service(router, lambda: names(router.routes), front)


async def asked(app: ASGIApp, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        found = await client.post(CHAT, json={"model": "m", "messages": [{"role": "user", "content": INSIDE}], **fields})
    assert INSIDE not in found.text and "Traceback" not in found.text
    return found


def error(found: httpx.Response) -> tuple[int, str, Any]:
    said = found.json()["error"]
    assert set(said) == {"message", "type", "param", "code"}
    return found.status_code, said["type"], said["code"]


def refused(front: Front, reason: str) -> float | None:
    return front.books.metrics._registry.get_sample_value("burnish_refused_total", {"key": "", "reason": reason})


@pytest.mark.parametrize("replicas", [[[RayActorError()]] * 3, [[fault()]], [[BEGUN[0], fault()]]])
async def test_replicas_that_die_and_engines_that_fail_are_a_502(replicas: list[list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    front = Front()
    found = await asked(behind(front, *replicas))
    assert error(found) == (502, "server_error", "engine_failed") and found.headers["retry-after"] == "1"
    assert refused(front, "engine") == 1 and "a model did not answer" in caplog.text and INSIDE not in caplog.text


@pytest.mark.parametrize("last", [RayActorError(), fault()])
async def test_a_stream_whose_replica_fails_ends_with_an_error_event(last: Exception) -> None:
    front = Front()
    found = await asked(behind(front, [*BEGUN, last]), stream=True)
    said, failed, done = [line[6:] for line in found.text.split("\n\n") if line]
    assert found.status_code == 200 and json.loads(said)["choices"][0]["delta"]["content"] == "Yes"
    assert (json.loads(failed)["error"]["code"], done) == ("engine_failed", "[DONE]")
    assert refused(front, "engine") == 1


@pytest.mark.parametrize(("status", "raises"), [(500, True), (500, False), (503, False)])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_own_words_of_a_fault_are_told_nobody(status: int, raises: bool, stream: bool) -> None:
    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette has it: the handler answers, and the error is raised all the same."""
        await answer(send, status, json.dumps({"error": {"message": INSIDE, "code": status}}).encode())
        if raises:
            raise RuntimeError(INSIDE)

    front = Front()
    assert error(await asked(chat_service(model, lambda: ("m",), front), stream=stream)) == (502, "server_error", "engine_failed")
    assert refused(front, "engine") == 1


@pytest.mark.parametrize(("code", "told"), [(500, False), (400, True)])
async def test_an_error_event_of_the_engines_is_told_where_the_request_was_at_fault(code: int, told: bool) -> None:
    said = "max_tokens is too large" if told else INSIDE

    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        row = {"error": {"message": said, "type": "x", "param": None, "code": code}}
        await send({"type": "http.response.body", "body": event(row) + b"data: [DONE]\n\n"})

    front = Front()
    found = await asked(chat_service(model, lambda: ("m",), front), stream=True)
    assert (said in found.text) is told and ("engine_failed" in found.text) is not told
    assert refused(front, "engine") == (None if told else 1)


async def test_an_answer_that_takes_too_long_is_a_504_and_ends_a_stream() -> None:
    for stream in (False, True):
        front = Front(answer_s=0.1)
        found = await asked(behind(front, [*(BEGUN if stream else []), None]), stream=stream)
        assert refused(front, "late") == 1
        if stream:
            *_, failed, done = [line[6:] for line in found.text.split("\n\n") if line]
            assert (json.loads(failed)["error"]["code"], done) == ("timeout", "[DONE]")
        else:
            assert error(found) == (504, "server_error", "timeout") and found.headers["x-should-retry"] == "false"


async def test_a_fault_of_the_service_itself_is_a_500_without_a_word_of_it(caplog: pytest.LogCaptureFixture) -> None:
    def models() -> list[str]:
        raise KeyError(INSIDE)

    front = Front()
    with caplog.at_level(logging.ERROR):
        found = await asked(chat_service(Router(front.books, 60), models, front))
    assert error(found) == (500, "server_error", "internal_error") and refused(front, "fault") == 1
    assert "KeyError" in caplog.text and "in models" in caplog.text and INSIDE not in caplog.text


async def test_a_client_that_hangs_up_is_no_fault() -> None:
    sent = list[Message]()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await Router(Books(), 60)._answer(Version([None]), CHAT, b"", receive, send)
    assert sent == []


async def test_a_service_that_ends_answers_what_it_has_and_nobody_else() -> None:
    front, go_on = Front(), asyncio.Event()

    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == CHAT:
            await go_on.wait()
        await answer(send, 200, json.dumps({"choices": []}).encode())

    app = chat_service(model, lambda: ("m",), front)
    before = asyncio.ensure_future(asked(app))
    while not front.admission._under_way:
        await asyncio.sleep(0)
    assert front.admission.drain() == 1
    found = await asked(app)
    assert error(found) == (503, "server_error", "overloaded") and found.headers["retry-after"] == "1"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        probed = [(await client.get(path)).status_code for path in ("/ready", "/health", "/v1/models")]
    assert probed == [503, 200, 200], "it lives, and takes no requests"
    go_on.set()
    assert (await before).status_code == 200
    assert front.admission.drain() == 0 and refused(front, "ending") == 1
