"""Copies of requests: answered for nobody, compared with the answers that callers got, and no harm to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from burnish.serving.audit import Audit, Books, Compared, Record
from burnish.serving.shadow import MOST_BYTES, Heard, Shadows
from burnish.serving.wire import CHAT

pytestmark = pytest.mark.unit

REQUEST = {
    "model": "m",
    "messages": [{"role": "user", "content": "?"}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "seed": 1,
}


def whole(*texts: str, status: int = 200) -> list[Message]:
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    body = json.dumps({"choices": choices} if status == 200 else {"error": {"message": "no"}}).encode()
    return [{"type": "http.response.start", "status": status}, {"type": "http.response.body", "body": body}]


def stream(*pieces: str, done: bool = True) -> list[Message]:
    rows = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    events = b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in [*rows, {"choices": [], "usage": {}}])
    events += b"data: [DONE]\n\n" if done else b""
    half = len(events) // 2
    parts: list[Message] = [{"type": "http.response.body", "body": part, "more_body": True} for part in (events[:half], events[half:])]
    return [{"type": "http.response.start", "status": 200}, *parts, {"type": "http.response.body", "body": b""}]


class Copies:
    """A version that answers copies as it is told to, when it is let. asked: what it was asked."""

    def __init__(self, answer: list[Message] | Exception) -> None:
        self.answer, self.asked = answer, list[tuple[str, str, dict[str, Any]]]()
        self.may = asyncio.Event()
        self.noted = asyncio.Queue[Compared]()
        self.shadows = Shadows(self.ask, self.noted.put_nowait, 60, most=2)

    async def ask(self, version: str, path: str, body: bytes) -> AsyncIterator[Message]:
        self.asked.append((version, path, json.loads(body)))
        await self.may.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        for message in self.answer:
            yield message

    async def compared(self, own: list[Message]) -> Compared:
        """What comes of a copy of a request that is answered so."""
        heard, sent = Heard(), list[Message]()

        async def send(message: Message) -> None:
            sent.append(message)

        self.shadows.copy("m:v2", CHAT, REQUEST, Record(model="m", version="m:v1"), heard)
        self.may.set()
        for message in own:
            await heard.before(send)(message)
        heard.end()
        assert sent == own, "what is listened to goes out as it is"
        return await asyncio.wait_for(self.noted.get(), 60)


@pytest.mark.parametrize(
    ("own", "copy", "outcome"),
    [
        (stream("It ", "is."), whole("It is."), "same"),
        (whole("It is.", "No."), whole("It is.", "No."), "same"),
        (whole("It is."), whole("It is not."), "different"),
        (stream("It ", done=False), whole("It is."), "unanswered"),
        (whole(status=400), whole("It is."), "unanswered"),
        (whole(status=400), whole(status=400), "unanswered"),  # the client's error says nothing of the shadow
        ([], whole("It is."), "unanswered"),
        (whole("It is."), whole(status=500), "failed"),
        (whole("It is."), [], "failed"),
        (whole("It is."), whole("x" * MOST_BYTES), "failed"),
        (whole("It is."), RuntimeError("gone"), "failed"),
    ],
)
async def test_both_answers_are_compared_whatever_befalls_them(own: list[Message], copy: list[Message] | Exception, outcome: str) -> None:
    copies = Copies(copy)
    compared = await copies.compared(own)
    assert compared.outcome == outcome
    ((version, path, asked),) = copies.asked
    assert (version, path) == ("m:v2", CHAT)
    assert asked == {"model": "m:v2", "messages": REQUEST["messages"], "stream": False, "seed": 1}


async def test_a_copy_is_not_waited_for_and_only_so_many_are_under_way() -> None:
    copies = Copies(whole("It is."))
    own = Heard()
    for _ in range(3):
        copies.shadows.copy("m:v2", CHAT, REQUEST, Record(model="m"), own)
    assert (await copies.noted.get()).outcome == "dropped" and copies.noted.empty()
    copies.may.set()
    own.end()
    assert {(await asyncio.wait_for(copies.noted.get(), 60)).outcome for _ in range(2)} == {"unanswered"}
    assert len(copies.asked) == 2


async def test_a_copy_that_takes_too_long_has_failed() -> None:
    copies = Copies(whole("It is."))
    copies.shadows = Shadows(copies.ask, copies.noted.put_nowait, 0.01)
    own = Heard()
    for message in whole("It is."):
        own.take(message)
    copies.shadows.copy("m:v2", CHAT, REQUEST, Record(model="m"), own)
    assert (await asyncio.wait_for(copies.noted.get(), 60)).outcome == "failed"


@pytest.mark.parametrize(("prompts", "store", "kept"), [(False, None, False), (True, None, True), (True, True, True), (True, False, False)])
def test_what_was_said_is_in_the_log_only_where_prompts_are_and_the_client_minds_not(
    tmp_path: Path, prompts: bool, store: bool | None, kept: bool
) -> None:
    books = Books(Audit(tmp_path / "audit.jsonl", prompts))
    record = Record(route="chat", id="chatcmpl-1", key="team", model="m", version="m:v1", asked=[{"role": "user", "content": "sesame"}])
    record.store = store
    books.shadowed(Compared(record, "m:v2", "different", 200, 0.5, 0.25, ["sesame"], ["other"]))
    line = json.loads((tmp_path / "audit.jsonl").read_text())
    assert ("sesame" in json.dumps(line)) == kept
    assert (line["route"], line["request"], line["version"], line["of"], line["outcome"]) == (
        "shadow", "chatcmpl-1", "m:v2", "m:v1", "different",
    )  # fmt: skip
    assert not {"prompt_tokens", "completion_tokens"} & line.keys(), "nobody is charged"
    labels = {"model": "m", "version": "m:v2", "outcome": "different"}
    assert books.metrics._registry.get_sample_value("burnish_shadows_total", labels) == 1
    assert books.metrics._registry.get_sample_value("burnish_tokens_total", {"key": "team", "model": "m", "kind": "prompt"}) is None
