"""What stands in front of the model: a small, strict part of the OpenAI API.

The application behind it (vLLM's) accepts many more routes than a chat service needs and ignores request fields that it does not know.
Here only the chat routes exist, and a field that would have no effect is an error of the client's, said so with status 400. What a
request asks to be fetched (images, sound, files) is refused: a client does not have this server call out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ..guardrails.guard import Guard
from ..rpc.payload import deeper_than
from .admission import Refused, Visit
from .apply_guardrail import ApplyGuardrailApp
from .audit import record_of
from .front import Front
from .give_feedback import FeedbackApp
from .guarded import GuardedChatApp
from .keys import Route
from .metered import MeteredChatApp
from .observed import ObservedChatApp
from .tool_calls import ToolCallsApp
from .wire import BODY_S, CHAT, HEALTH, MAX_DEPTH, answer, is_json, read_body, refuse, replay

MODELS: Final = "/v1/models"
METRICS: Final = "/metrics"
ROUTES: Final = {CHAT: "POST", MODELS: "GET", METRICS: "GET", HEALTH: "GET"}
_CALLED: Final[Mapping[str, Route]] = {CHAT: "chat", MODELS: "models", METRICS: "metrics"}
TOO_DEEP: Final = f"the request is nested more than {MAX_DEPTH} levels deep"
FORMATS: Final = ("text", "json_object", "json_schema")
LARGEST_SCHEMA: Final = 16_384
MOST_COUNTED: Final = 16
"""Properties that a schema may count: the grammar's size grows with the cube of it."""
MOST_ANSWERS: Final = 128
"""Of `n`, as OpenAI has it."""

CHAT_FIELDS: Final = frozenset({
    "messages", "tools", "tool_choice", "response_format", "model", "n", "stream", "stream_options", "user", "store",
    "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
    "max_tokens", "max_completion_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos",
    "logprobs", "top_logprobs", "return_token_ids", "skip_special_tokens", "add_generation_prompt", "continue_final_message",
})  # fmt: skip
"""Request fields that the service honours. `user` only names the caller and changes no answer; `store` says whether it may be kept."""


def chat_service(
    model: ASGIApp, models: Callable[[], Sequence[str]], front: Front | None = None, guard: Guard | None = None, body_s: float = BODY_S
) -> ASGIApp:
    """The whole service but its model: the front, the strict part of the API, tool calls, the guardrail policy, and the meter.

    model: answers chat requests, and `/health`. models: the names that clients may ask for, as they are now. body_s: seconds that a client
    has to send a request.
    """
    front = front or Front()
    metered = MeteredChatApp(model)
    said = ToolCallsApp(metered if guard is None else GuardedChatApp(metered, guard))
    service: ASGIApp = StrictChatApp(ObservedChatApp(said, front.observers) if front.observers else said, models, front, body_s)
    if front.desk is not None:
        service = FeedbackApp(front.desk, front, service, body_s)
    return service if guard is None else ApplyGuardrailApp(guard, front, service, body_s)


class StrictChatApp:
    """ASGI middleware that lets through what the front does, the chat routes and honoured fields only. `/health` needs no key."""

    def __init__(self, app: ASGIApp, models: Callable[[], Sequence[str]], front: Front | None = None, body_s: float = BODY_S) -> None:
        self._app, self._models, self._front, self._body_s = app, models, front or Front(), body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if path == HEALTH and scope["method"] == ROUTES[HEALTH]:
            await self._app(scope, receive, send)
            return

        async def answered(scope: Scope, send: Send, visit: Visit) -> None:
            if path == CHAT:
                await self._chat(scope, receive, send, visit)
            elif path == MODELS:
                await answer(send, 200, self._listed(visit))
            else:
                await answer(send, 200, self._front.books.metrics.page(), b"text/plain; version=0.0.4; charset=utf-8")

        await self._front.handle(scope, send, _called(path, scope["method"]), answered, refuse)

    def _listed(self, visit: Visit) -> bytes:
        now = int(time.time())
        names = [name for name in self._models() if visit.caller.may_ask(name)]
        data = [{"id": name, "object": "model", "created": now, "owned_by": "burnish"} for name in names]
        return json.dumps({"object": "list", "data": data}).encode()

    async def _chat(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        if not is_json(scope["headers"]):
            raise Refused(415, "invalid", "a request is JSON: send it with Content-Type: application/json")
        body = await read_body(receive, self._body_s)
        request = read_chat_request(body)
        record = record_of(scope)
        if self._front.books.audit.prompts:
            record.asked = request.get("messages")
        model = request.get("model") or (self._models()[0] if len(self._models()) == 1 else None)
        if not isinstance(model, str):
            there = ", ".join(filter(visit.caller.may_ask, self._models()))
            raise Refused(400, "model", f"the request must name a model; there are {there}", param="model")
        if not visit.caller.may_ask(model):
            said = f"the key {visit.caller.name!r} may not ask for {model[:100]!r}"
            raise Refused(403, "model", said, code="insufficient_permissions", param="model")
        if model not in self._models():
            raise Refused(404, "model", f"there is no model {model[:100]!r}", code="model_not_found", param="model")
        record.model, record.store = model, request.get("store")
        if record.store and not (self._front.desk is not None and self._front.desk.conversations):
            raise Refused(400, "invalid", "store: this service keeps no conversations; leave it out", param="store")
        visit.take(request.get("n") or 1)
        await self._app(scope, replay(body, receive), send)


def _called(path: str, method: str) -> Route | Refused:
    if path not in ROUTES:
        return Refused(404, "unknown_route", f"there is no {path[:200]}; the service has {', '.join(ROUTES)}")
    if method != ROUTES[path]:
        return Refused(405, "method", f"{path} takes {ROUTES[path]}, not {method}")
    return _CALLED[path]


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def read_chat_request(body: bytes) -> dict[str, Any]:
    """A chat request. Raises Refused, 400, naming the field where one is wrong.

    Only what the application behind would let pass in silence is looked at; it checks the values itself.
    """
    try:
        request = json.loads(body, parse_constant=_no_number, parse_float=_number)
    except RecursionError:
        raise _invalid(TOO_DEEP) from None
    except ValueError as error:
        raise _invalid(f"the request is not valid JSON: {error}") from None
    if deeper_than(request, MAX_DEPTH):
        raise _invalid(TOO_DEEP)
    if not isinstance(request, dict):
        raise _invalid("the request must be a JSON object")
    unknown = sorted(key for key in request if key not in CHAT_FIELDS)
    if unknown:
        name = unknown[0][:100]
        raise _invalid(f"this service does not support the parameter {name!r}; it has {', '.join(sorted(CHAT_FIELDS))}", name)
    for name in ("stream", "store"):
        if not isinstance(request.get(name), bool | None):
            raise _invalid(f"{name} must be true or false", name)
    answers = request.get("n")
    if answers is not None and (not isinstance(answers, int) or isinstance(answers, bool) or not 1 <= answers <= MOST_ANSWERS):
        raise _invalid(f"n must be a whole number from 1 to {MOST_ANSWERS}", "n")
    _check_format(request.get("response_format"))
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and not _only_text(message.get("content")):
            raise _invalid(
                'messages may hold text only: a part of a content reads {"type": "text", "text": …}; nothing is fetched', "messages"
            )
    return request


def _check_format(form: Any) -> None:
    """Raises Refused where a `response_format` is none, or would cost more than an answer to make a grammar of."""
    if form is None:
        return
    if not isinstance(form, dict) or form.get("type") not in FORMATS:
        raise _invalid(f"response_format must be an object whose type is one of {', '.join(FORMATS)}", "response_format")
    if len(json.dumps(form)) > LARGEST_SCHEMA:
        raise _invalid(f"response_format may have {LARGEST_SCHEMA:,} characters: a grammar is made of its schema", "response_format")
    if _largest_count(form) > MOST_COUNTED:
        said = (
            f"a schema may ask for {MOST_COUNTED} properties at most by minProperties or maxProperties: the grammar of more takes minutes"
        )
        raise _invalid(said, "response_format")


def _largest_count(form: Any) -> float:
    """The largest number that `minProperties` or `maxProperties` has anywhere in a format, 0 where there is none."""
    if isinstance(form, list):
        return max(map(_largest_count, form), default=0)
    if not isinstance(form, dict):
        return 0
    own = [form[name] for name in ("minProperties", "maxProperties") if isinstance(form.get(name), int | float)]
    return max([*own, *map(_largest_count, form.values())], default=0)


def _invalid(message: str, param: str | None = None) -> Refused:
    return Refused(400, "invalid", message, param=param)


def _only_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)
