"""The guardrail policy in front of a served model: on what is asked, on what is answered, and on answers as they are written.

A request that the policy blocks never reaches the model; an answer that it blocks never reaches the client, who gets the policy's own words
with `finish_reason` "content_filter". Where the guard cannot decide, the request fails: nothing goes out unseen.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..envs.failures import EpisodeFailure
from ..envs.types import message_from_dict
from ..guardrails.asks import MOST_ASKS, Asks
from ..guardrails.guard import Guard
from ..guardrails.policy import ACTIONS
from ..guardrails.readings import check_length
from ..guardrails.types import Decision
from .admission import Refused
from .asked import Asked, context_asked, may_call
from .audit import Record, record_of
from .choices import said, saying
from .event_stream import DONE, GuardedStream, event
from .looking import Looks, unless_gone
from .requests import answers_of, has_token_ids
from .wire import ANSWERED, COMPLETIONS, answer, error_of, path_of, read_request, with_length, with_request

TELLING = ("logprobs", "top_logprobs", "return_token_ids")
"""Fields that would say what the policy holds back, where they are not false; of a completion, `logprobs` 0 tells every token."""


class GuardedChatApp:
    """ASGI middleware that holds requests and their answers to a policy. It stands between the strict application and the meter.

    judge_calls: of detectors that ask something elsewhere, for one request with all its answers; what they are not asked about any more
    counts as found by them.
    """

    def __init__(self, app: ASGIApp, guard: Guard, looks: Looks, judge_calls: int = MOST_ASKS) -> None:
        self._app, self._guard, self._looks, self._judge_calls = app, guard, looks, judge_calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) not in ANSWERED:
            await self._app(scope, receive, send)
            return
        request = await read_request(scope, receive)
        counts = request.get("logprobs") is not None and path_of(scope) == COMPLETIONS
        telling = "logprobs" if counts else next((field for field in TELLING if request.get(field)), None)
        if telling is not None:
            raise Refused(400, "invalid", f"{telling} would say what the guardrail policy holds back; leave it out", param=telling)
        asked_as = "prompt" if path_of(scope) == COMPLETIONS else "messages"
        if has_token_ids(request):
            raise Refused(400, "invalid", "the guardrail policy reads text: give the prompt as text, not as token ids", param="prompt")
        record, asks = record_of(scope), Asks(self._judge_calls)
        try:
            request, decisions = await unless_gone(scope, receive, self._asked(request, asks))
        except ValueError as error:
            raise Refused(400, "invalid", str(error), param=asked_as) from None
        except EpisodeFailure as error:
            raise _unavailable(f"could not be applied: {error.failure.kind}") from None
        record.decisions += decisions
        blocked = [decision for decision in decisions if decision.blocked]
        if blocked:
            strictest = max(blocked, key=lambda decision: ACTIONS.index(decision.action))
            await _answer_instead(request, record, strictest, send)
            return
        warning = next((decision.below for decision in decisions if decision.action == "warn"), "")
        # of an answer that may hold calls, `ToolCallsApp` knows what is said and what is a call
        context = None if may_call(request) else await self._looks.at(context_asked, self._guard.policy, request)
        inner, handed_on = with_request(scope, receive, request)
        if request.get("stream"):
            before, count = before_answers(request), answers_of(request)
            stream = GuardedStream(self._guard, warning, record, count, before, asks, context)
            await self._stream(inner, handed_on, send, record, stream)
        else:
            await self._whole(inner, handed_on, send, partial(self._answered, record, warning, before_answers(request), asks, context))

    async def _asked(self, request: dict[str, Any], asks: Asks) -> tuple[dict[str, Any], tuple[Decision, ...]]:
        """The request as it may go on, and the decisions; none where nothing is asked. Raises ValueError on messages that are none."""
        asked, texts = await self._looks.at(_taken_apart, request)
        decided = {text: await self._looks.at(self._guard.check, text, "input", asks=asks) for text in texts}
        decisions = tuple(decided.values())
        blocked = any(decision.blocked for decision in decisions)
        if blocked or not any(finding.action == "redact" for decision in decisions for finding in decision.findings):
            return request, decisions
        return await self._looks.at(asked.without, {text: decision.findings for text, decision in decided.items()}), decisions

    async def _whole(
        self, scope: Scope, receive: Receive, send: Send, answered: Callable[[dict[str, Any]], Coroutine[Any, Any, bytes]]
    ) -> None:
        """An answer in one piece: it is held until it has been decided on. answered: what goes out of it."""
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
                body = await unless_gone(scope, receive, answered(json.loads(body)))
            except (ValueError, EpisodeFailure):
                raise _unavailable("could not be applied to the answer") from None
        await send({**start, "headers": with_length(start.get("headers", ()), len(body))})
        await send({"type": "http.response.body", "body": body})

    async def _answered(
        self, record: Record, warning: str, before: Callable[[int], str], asks: Asks, context: str | None, answer: dict[str, Any]
    ) -> bytes:
        """One choice after the other, so that none is looked at any more once the client is gone. before: what each goes on from."""
        for i, choice in enumerate(answer["choices"]):
            decision = await self._looks.at(self._guard.check, said(choice), "output", context, before(choice["index"]), asks)
            record.decisions.append(decision)
            below = "" if decision.blocked else decision.below + warning
            record.below[choice["index"]] = below
            ended = {"finish_reason": "content_filter", "stop_reason": None} if decision.blocked else {}
            answer["choices"][i] = saying(choice, decision.message if decision.blocked else decision.text + below) | ended
        return json.dumps(answer).encode()

    async def _stream(self, scope: Scope, receive: Receive, send: Send, record: Record, stream: GuardedStream) -> None:
        """An answer as it is written. When all of it is blocked, or cannot be decided on, the model is told to stop."""
        over = asyncio.Event()

        async def pass_on(message: Message) -> None:
            if over.is_set():
                return
            if message["type"] == "http.response.start":
                stream.is_events = message["status"] == 200
                await send(message)
                return
            body = message.get("body", b"")
            if stream.is_events:
                try:
                    body = await self._looks.at(stream.take, body)
                except (ValueError, EpisodeFailure):
                    refused = _unavailable("could not be applied to the rest of the answer")
                    record.refused, stream.over = refused.reason, True
                    body = event({"error": error_of(refused)}) + DONE + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": message.get("more_body", False) and not stream.over})
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
                if not answering.cancelled():
                    answering.exception()  # of an answer that was cut off, nobody waits for how it ended


def before_answers(request: Mapping[str, Any]) -> Callable[[int], str]:
    """What an answer goes on from, by its index: a completion's own prompt, unless it is repeated in it, or a last message that is no whole
    one. A word begun there may end in the answer."""
    if "prompt" in request and not request.get("echo"):
        prompts, each = [request["prompt"]] if isinstance(request["prompt"], str) else request["prompt"], request.get("n") or 1
        return lambda index: str(prompts[index // each])
    if request.get("continue_final_message") and request.get("messages"):
        begun = message_from_dict(request["messages"][-1], "messages").text
        return lambda index: begun
    return lambda index: ""


def _taken_apart(request: Mapping[str, Any]) -> tuple[Asked, list[str]]:
    """A request, and its texts. Raises ValueError when one is too long, before anything is asked about another."""
    asked = Asked.of(request)
    texts = asked.texts()
    for text in texts:
        check_length(text)
    return asked, texts


def _unavailable(what: str) -> Refused:
    return Refused(503, "guard", f"the guardrail policy {what}", code="guardrail_unavailable")


async def _answer_instead(request: Mapping[str, Any], record: Record, decision: Decision, send: Send) -> None:
    """The policy's own words in the shape of an answer."""
    ended = {"index": 0, "finish_reason": "content_filter"}
    message = {"role": "assistant", "content": decision.reply}
    kind, choice = "chat.completion", {**ended, "message": message}
    if "prompt" in request:
        kind, choice = "text_completion", {**ended, "text": decision.reply, "logprobs": None}
    elif request.get("stream"):
        kind, choice = "chat.completion.chunk", {**ended, "delta": message}
    row = {"id": record.id, "object": kind, "created": int(time.time()), "model": record.model, "choices": [choice]}
    if request.get("stream"):
        await answer(send, 200, event(row) + DONE + b"\n\n", b"text/event-stream")
        return
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    await answer(send, 200, json.dumps({**row, "usage": usage}).encode())
