"""Counts the tokens that a model reads and writes for each request, whether or not its client asks for the count or waits for the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .admission import AGAIN_S, Refused
from .audit import BROKEN_OFF, Record, record_of
from .choices import said
from .event_stream import DONE, event
from .wire import ANSWERED, USAGE, error_of, path_of, read_request, told_where, with_length, with_request

_log = logging.getLogger(__name__)

EVERY_CHUNK = {"include_usage": True, "continuous_usage_stats": True}
"""What vLLM is asked for, so that a stream that is broken off has been counted."""


class MeteredChatApp:
    """ASGI middleware right before the model: writes down in the request's record what it took, and gives answers the record's id.

    What goes wrong behind it is the engine's: raised as Refused, 502, without its words.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) not in ANSWERED:
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        request = {key: value for key, value in (await read_request(scope, receive)).items() if key != "store"}  # the service's own
        record.read = request
        asked = request.get("stream_options")
        if request.get("stream") and isinstance(asked, dict | None):  # what else it may be is the model's to refuse
            meter = MeteredStream(record, asked or {}, request.get("n") or 1)
            inner = with_request(scope, receive, {**request, "stream_options": {**(asked or {}), **EVERY_CHUNK}})
            await self._answered(*inner, _metering(meter, send))
        else:
            answered = asyncio.Event()
            await self._answered(*with_request(scope, receive, request), _counting(record, send, answered.set))
            if not answered.is_set():
                raise Refused(BROKEN_OFF, "gone", "the client is gone")

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed = False

        async def unless_failed(message: Message) -> None:
            nonlocal failed
            failed = failed or (message["type"] == "http.response.start" and message["status"] >= 500)
            if not failed or message["type"] == USAGE:
                await send(message)

        try:
            await self._app(scope, receive, unless_failed)
        except Refused:
            raise
        except Exception as error:  # of vLLM, of Ray, of a replica that is gone
            _log.error("a model did not answer: %s", told_where(error))
            raise _engine_failed() from None
        if failed:
            raise _engine_failed()


def _engine_failed() -> Refused:
    return Refused(502, "engine", "the model's engine failed at this request; ask again", code="engine_failed", again_s=AGAIN_S)


def _metering(meter: MeteredStream, send: Send) -> Send:
    events = True

    async def metered(message: Message) -> None:
        nonlocal events
        if message["type"] == USAGE:
            meter.note(message)
            return
        if message["type"] == "http.response.start":
            events = message["status"] == 200
        elif events and message["type"] == "http.response.body":
            body = meter.take(message.get("body", b""))
            if not body and message.get("more_body", False):
                return
            message = {**message, "body": body}
        await send(message)

    return metered


def _counting(record: Record, send: Send, answered: Callable[[], None]) -> Send:
    """An answer in one piece, which is sent on once it is whole. Of a client that is gone, vLLM's is `null`, and is none."""
    start: Message = {}
    parts: list[bytes] = []

    async def counted(message: Message) -> None:
        nonlocal start
        if message["type"] == USAGE:
            _note_usage(record, message)
            return
        if message["type"] == "http.response.start":
            start = message
            return
        parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = b"".join(parts)
        if start["status"] == 200:
            answer = json.loads(body)
            if answer is None:
                return
            record.has_begun()
            _note_usage(record, answer.get("usage") or {})
            body = json.dumps({**answer, "id": record.id}).encode()
        answered()
        await send({**start, "headers": with_length(start.get("headers", ()), len(body))})
        await send({"type": "http.response.body", "body": body})

    return counted


class MeteredStream:
    """Takes the bytes of a stream whose every event says what was used so far, and gives them as the client asked for them.

    asked: its `stream_options`. each: answers to each prompt; a completion request may have several prompts.
    """

    def __init__(self, record: Record, asked: Mapping[str, Any], each: int = 1) -> None:
        self._record, self._each = record, each
        self._at_the_end = bool(asked.get("include_usage"))
        self._in_every = self._at_the_end and bool(asked.get("continuous_usage_stats"))
        self._rest = b""
        self._read: dict[int, int] = {}
        self._written: dict[int, int] = {}

    def note(self, usage: Mapping[str, Any]) -> None:
        """Count what was taken before an event says so."""
        _note_usage(self._record, usage)

    def take(self, piece: bytes) -> bytes:
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        return b"".join(self._event(one) for one in whole if one)

    def _event(self, raw: bytes) -> bytes:
        if not raw.startswith(b"data: ") or raw.startswith(DONE):
            return raw + b"\n\n"
        row = json.loads(raw[6:])
        if "choices" not in row:
            return self._broken(row, raw)
        row["id"], usage = self._record.id, row.get("usage") or {}
        if not row["choices"]:
            _note_usage(self._record, usage)
            return event(row) if self._at_the_end else b""
        if usage:
            index = row["choices"][0]["index"]
            self._read[index // self._each] = usage.get("prompt_tokens", 0)
            self._written[index] = usage.get("completion_tokens", 0)
            so_far = {"prompt_tokens": sum(self._read.values()), "completion_tokens": sum(self._written.values())}
            _note_usage(self._record, so_far)
        if any(said(choice) for choice in row["choices"]):
            self._record.has_begun()
        return event(row if self._in_every else {key: value for key, value in row.items() if key != "usage"})

    def _broken(self, row: Mapping[str, Any], raw: bytes) -> bytes:
        """An error in the place of a part of the answer: the engine's own ones say what it is made of."""
        code = (row.get("error") or {}).get("code")
        if isinstance(code, int) and code < 500:
            return raw + b"\n\n"
        refused = _engine_failed()
        self._record.refused = refused.reason
        return event({"error": error_of(refused)})


def _note_usage(record: Record, usage: Mapping[str, Any]) -> None:
    """What was taken at the least: the engine's word and the answer's come by different ways, and only ever say more."""
    record.prompt_tokens = max(record.prompt_tokens, int(usage.get("prompt_tokens") or 0))
    record.completion_tokens = max(record.completion_tokens, int(usage.get("completion_tokens") or 0))
