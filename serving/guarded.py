"""The guardrail policy in front of a served model: on what is asked, on what is answered, and on answers as they are written.

A request that the policy blocks never reaches the model; an answer that it blocks never reaches the client, who gets the policy's own words
with `finish_reason` "content_filter". Where the guard cannot decide, the request fails: nothing goes out unseen.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..envs.failures import EpisodeFailure
from ..guardrails.guard import Guard
from ..guardrails.policy import ACTIONS
from ..guardrails.types import Decision
from .app import CHAT, read_body, refuse, replay
from .asked import Asked
from .audit import Audit
from .event_stream import GuardedStream, event

TELLING = ("logprobs", "top_logprobs", "return_token_ids")
"""Fields that would say what the policy holds back."""


class GuardedChatApp:
    """ASGI middleware that holds chat requests and their answers to a policy. It stands behind the strict application."""

    def __init__(self, app: ASGIApp, guard: Guard, audit: Audit) -> None:
        self._app, self._guard, self._audit = app, guard, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/") != CHAT:
            await self._app(scope, receive, send)
            return
        request = json.loads(await read_body(receive) or b"{}")
        telling = next((field for field in TELLING if request.get(field)), None)
        if telling is not None:
            await refuse(send, 400, f"{telling} would say what the guardrail policy holds back; leave it out", telling)
            return
        id = f"chatcmpl-{uuid.uuid4().hex}"
        try:
            request, decisions = await asyncio.to_thread(self._asked, request)
        except ValueError as error:
            await refuse(send, 400, str(error), "messages")
            return
        except EpisodeFailure as error:
            await refuse(send, 503, f"the guardrail policy could not be applied: {error.failure.kind}", code="guardrail_unavailable")
            return
        for decision in decisions:
            self._audit.decided(id, decision)
        blocked = [decision for decision in decisions if decision.blocked]
        if blocked:
            strictest = max(blocked, key=lambda decision: ACTIONS.index(decision.action))
            await _answer_instead(request, id, strictest, send)
            return
        warning = next((decision.message for decision in decisions if decision.action == "warn"), "")
        body = json.dumps(request).encode()
        inner = {**scope, "headers": _with_length(scope["headers"], len(body))}
        if request.get("stream"):
            await self._stream(inner, replay(body, receive), send, id, warning)
        else:
            await self._whole(inner, replay(body, receive), send, id, warning)

    def _asked(self, request: dict[str, Any]) -> tuple[dict[str, Any], tuple[Decision, ...]]:
        """The request as it may go on, and the decisions; none where nothing is asked. Raises ValueError on messages that are none."""
        asked = Asked.of(request)
        decided = {text: self._guard.check(text, "input") for text in asked.texts()}
        decisions = tuple(decided.values())
        blocked = any(decision.blocked for decision in decisions)
        if blocked or not any(finding.action == "redact" for decision in decisions for finding in decision.findings):
            return request, decisions
        return asked.without({text: decision.findings for text, decision in decided.items()}), decisions

    async def _whole(self, scope: Scope, receive: Receive, send: Send, id: str, warning: str) -> None:
        """An answer in one piece: it is held until it has been decided on."""
        start: Message = {}
        parts: list[bytes] = []

        async def hold(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, hold)
        body = b"".join(parts)
        if start["status"] == 200:
            try:
                body = await asyncio.to_thread(self._answered, json.loads(body), id, warning)
            except (ValueError, EpisodeFailure):
                await refuse(send, 503, "the guardrail policy could not be applied to the answer", code="guardrail_unavailable")
                return
        await send({**start, "headers": _with_length(start.get("headers", ()), len(body))})
        await send({"type": "http.response.body", "body": body})

    def _answered(self, answer: dict[str, Any], id: str, warning: str) -> bytes:
        for choice in answer["choices"]:
            text = choice["message"].get("content") or ""
            decision = self._guard.check(text, "output")
            self._audit.decided(id, decision)
            choice["message"]["content"] = f"{decision.reply}\n\n{warning}" if warning and not decision.blocked else decision.reply
            if decision.blocked:
                choice["finish_reason"], choice["stop_reason"] = "content_filter", None
        return json.dumps(answer | {"id": id}).encode()

    async def _stream(self, scope: Scope, receive: Receive, send: Send, id: str, warning: str) -> None:
        """An answer as it is written. When all of it is blocked, the model is told to stop."""
        stream = GuardedStream(self._guard, id, warning, lambda decision: self._audit.decided(id, decision))
        over = asyncio.Event()

        async def pass_on(message: Message) -> None:
            if over.is_set():
                return
            if message["type"] == "http.response.start":
                stream.is_events = message["status"] == 200
                await send(message)
                return
            body = await asyncio.to_thread(stream.take, message.get("body", b"")) if stream.is_events else message.get("body", b"")
            more = message.get("more_body", False) and not stream.over
            await send({"type": "http.response.body", "body": body, "more_body": more})
            if stream.over:
                over.set()

        answering = asyncio.ensure_future(self._app(scope, receive, pass_on))
        stopping = asyncio.ensure_future(over.wait())
        try:
            await asyncio.wait((answering, stopping), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            stopping.cancel()
            if not answering.done():
                answering.cancel()
                await asyncio.wait((answering,))


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    return [*((name, value) for name, value in headers if name.lower() != b"content-length"), (b"content-length", str(length).encode())]


async def _answer_instead(request: Mapping[str, Any], id: str, decision: Decision, send: Send) -> None:
    """The policy's own words in the shape of an answer."""
    head = {"id": id, "created": int(time.time()), "model": str(request.get("model", ""))}
    if request.get("stream"):
        delta = {"role": "assistant", "content": decision.reply}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": "content_filter"}]}
        body, kind = event(chunk) + b"data: [DONE]\n\n", b"text/event-stream"
    else:
        message = {"role": "assistant", "content": decision.reply}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        choice = {"index": 0, "message": message, "finish_reason": "content_filter"}
        body = json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        kind = b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
