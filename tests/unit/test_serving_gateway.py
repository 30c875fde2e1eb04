"""The gateway's router: what the engine tells the meter is no part of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError

from burnish.serving.app import chat_service
from burnish.serving.audit import Books
from burnish.serving.event_stream import DONE, event, says_nothing
from burnish.serving.front import Front
from burnish.serving.gateway import Router
from burnish.serving.routes import VersionShare, names
from burnish.serving.wire import CHAT, USAGE

pytestmark = pytest.mark.unit

TAKEN = {"type": USAGE, "prompt_tokens": 7, "completion_tokens": 1}
BODY = {"type": "http.response.body", "body": b"{}"}


class Call:
    def __init__(self, gives: list[Any]) -> None:
        self._gives = gives

    async def __aiter__(self) -> AsyncIterator[Any]:
        for one in self._gives:
            if isinstance(one, Exception):
                raise one
            yield one

    def cancel(self) -> None: ...


class Handle:
    """A version whose replicas answer in turn."""

    def __init__(self, *replicas: list[Any]) -> None:
        self._replicas = list(replicas)

    def remote(self, path: str, body: bytes) -> Call:
        return Call(self._replicas.pop(0))


async def test_a_replica_that_dies_after_it_only_told_what_it_took_is_followed_by_another() -> None:
    sent = list[Any]()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Router(Books(), 60)._answer(Handle([[TAKEN], RayActorError()], [[TAKEN], [BODY]]), CHAT, b"", receive, send)
    assert sent == [TAKEN, TAKEN, BODY]
    with pytest.raises(RayActorError):
        await Router(Books(), 60)._answer(Handle([[BODY], RayActorError()], [[BODY]]), CHAT, b"", receive, send)


START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    row = {
        "id": "x",
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3},
    }
    return {"type": "http.response.body", "body": event(row), "more_body": True}


BEGINS = [START, chunk(role="assistant", content=""), chunk(1, role="assistant", content="")]
"""What vLLM sends of a stream of two choices before the first word of either."""
END = {"type": "http.response.body", "body": DONE + b"\n\n"}


async def streamed(*replicas: list[Any]) -> list[Any]:
    sent = list[Any]()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Router(Books(), 60)._answer(Handle(*replicas), CHAT, b"", receive, send)
    return sent


@pytest.mark.parametrize("before", [[], [START], BEGINS])
async def test_a_stream_without_a_word_is_put_to_another_replica(before: list[Any]) -> None:
    whole = [*BEGINS, chunk(content="Yes"), chunk(1, finish="stop", content=""), END]
    batches = [[one] for one in whole]
    assert await streamed([before, RayActorError()], batches) == whole
    with pytest.raises(RayActorError):
        await streamed([[*BEGINS, chunk(content="Yes")], RayActorError()], batches)
    with pytest.raises(RayActorError):
        await streamed(*([before, RayActorError()] for _ in range(3)))


async def test_what_is_held_of_an_answer_goes_out_with_its_first_word_or_its_end() -> None:
    empty = {"type": "http.response.body", "body": b""}
    assert await streamed([[START], [empty]]) == [START, empty]
    assert await streamed([BEGINS, [END]]) == [*BEGINS, END]


@pytest.mark.parametrize(
    ("body", "nothing"),
    [
        (b"", True),
        (event({"choices": [{"index": 0, "text": "", "finish_reason": None}]}), True),
        (event({"choices": [{"index": 0, "text": "It", "finish_reason": None}]}), False),
        (event({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "length"}]}), False),
        (event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}), False),
        (event({"error": {"code": 500}}), False),
        (event({"choices": []}), False),
        (b'{"choices": [{"message": {"role": "assistant", "content": ""}}]}', False),
        (b"data: [", False),
    ],
)
def test_nothing_is_said_by_events_that_only_name_a_role(body: bytes, nothing: bool) -> None:
    assert says_nothing(body) is nothing


async def test_a_gateway_that_has_just_started_says_when_to_come_again() -> None:
    """Until it hears of its versions it knows no model, and while they start not all of them."""
    front = Front()
    router = Router(front.books, 60)
    app = chat_service(router, lambda: names(router.routes), front, complete=lambda: router.started)

    async def told(method: str, path: str, **fields: Any) -> tuple[int, Any, bool]:
        row = {"messages": [{"role": "user", "content": "?"}], **fields} if method == "POST" else None
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            found = await client.request(method, path, json=row)
        return found.status_code, found.json().get("error", {}).get("code"), "retry-after" in found.headers

    again = (503, "overloaded", True)
    for asked in (told("POST", CHAT, model="m"), told("POST", CHAT), told("GET", "/v1/models")):
        assert await asked == again
    router.routes = {"m": (VersionShare("v1", 1.0),), "n": (VersionShare("v1", 1.0),)}
    assert await told("POST", CHAT, model="late") == again and (await told("GET", "/v1/models"))[0] == 200
    assert (await told("POST", CHAT))[0] == 400, "which of them is not said"
    router.started = True
    assert await told("POST", CHAT, model="late") == (404, "model_not_found", False)
    assert front.books.metrics._registry.get_sample_value("burnish_refused_total", {"key": "", "reason": "starting"}) == 4
