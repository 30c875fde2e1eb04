"""What stands in front of the model: a small, strict part of the OpenAI API.

The application behind it (vLLM's) accepts many more routes than a chat service needs and ignores request fields that it does not know.
Here only few routes exist, and their requests are read strictly (`serving.requests`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ..guardrails.asks import MOST_ASKS
from ..guardrails.guard import Guard
from .admission import AGAIN_S, Refused, Visit
from .apply_guardrail import ApplyGuardrailApp
from .audit import record_of
from .front import Front
from .give_feedback import FeedbackApp
from .guarded import GuardedChatApp
from .keys import Route
from .looking import AT_ONCE, Looks
from .metered import MeteredChatApp
from .observed import ObservedChatApp
from .openapi import description
from .requests import READERS, answers_of
from .tool_calls import ToolCallsApp
from .wire import BODY_S, CHAT, COMPLETIONS, HEALTH, PROBES, READY, answer, is_json, path_of, read_aside, read_body, refuse, with_request

MODELS: Final = "/v1/models"
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"
ROUTES: Final = {CHAT: "POST", COMPLETIONS: "POST", MODELS: "GET", METRICS: "GET", OPENAPI: "GET", HEALTH: "GET", READY: "GET"}
_CALLED: Final[Mapping[str, Route]] = {CHAT: "chat", COMPLETIONS: "completions", MODELS: "models", METRICS: "metrics", OPENAPI: "models"}


def chat_service(
    model: ASGIApp,
    models: Callable[[], Sequence[str]],
    front: Front | None = None,
    guard: Guard | None = None,
    body_s: float = BODY_S,
    looks: int = AT_ONCE,
    judge_calls: int = MOST_ASKS,
    complete: Callable[[], bool] = lambda: True,
) -> ASGIApp:
    """The whole service but its model: the front, the strict part of the API, tool calls, the guardrail policy, and the meter.

    model: answers chat and completion requests, `/health` and `/ready`. models: the names that clients may ask for, as they are now.
    body_s: seconds that a client has to send a request. looks: texts that the guard looks at at a time. judge_calls: as `GuardedChatApp`
    has it. complete: whether every model has been there; until then one that is not may be on its way.
    """
    front, looking = front or Front(), Looks(looks)
    metered = MeteredChatApp(model)
    if guard is None:
        said = ToolCallsApp(metered)
    else:
        said = ToolCallsApp(GuardedChatApp(metered, guard, looking, judge_calls), guard.without_asking(), looking)
    observed = ObservedChatApp(said, front.observers) if front.observers else said
    described = partial(description, front.desk is not None, guard.policy if guard is not None else None)
    service: ASGIApp = StrictChatApp(observed, models, front, body_s, described, complete)
    if front.desk is not None:
        service = FeedbackApp(front.desk, front, service, body_s)
    return service if guard is None else ApplyGuardrailApp(guard, front, service, body_s, looking)


class StrictChatApp:
    """ASGI middleware that lets through what the front does, the routes and honoured fields only. `/health` and `/ready` need no key.

    described: the service in OpenAPI. complete: as `chat_service` has it.
    """

    def __init__(
        self,
        app: ASGIApp,
        models: Callable[[], Sequence[str]],
        front: Front | None = None,
        body_s: float = BODY_S,
        described: Callable[[], dict[str, Any]] = description,
        complete: Callable[[], bool] = lambda: True,
    ) -> None:
        self._app, self._models, self._front, self._body_s, self._described = app, models, front or Front(), body_s, described
        self._complete = complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = path_of(scope)
        if path == READY and scope["method"] == ROUTES[path] and self._front.admission.ending:
            await answer(send, 503, b"")
            return
        if path in PROBES and scope["method"] == ROUTES[path]:
            await self._app(scope, receive, send)
            return

        async def answered(scope: Scope, send: Send, visit: Visit) -> None:
            if path in READERS:
                await self._asked(scope, receive, send, visit)
            elif path == MODELS:
                self._check_there(bool(self._models()))
                await answer(send, 200, self._listed(visit))
            elif path == OPENAPI:
                await answer(send, 200, json.dumps(self._described()).encode())
            else:
                await answer(send, 200, self._front.books.metrics.page(), b"text/plain; version=0.0.4; charset=utf-8")

        await self._front.handle(scope, send, _called(path, scope["method"]), answered, refuse)

    def _listed(self, visit: Visit) -> bytes:
        now = int(time.time())
        names = [name for name in self._models() if visit.caller.may_ask(name)]
        data = [{"id": name, "object": "model", "created": now, "owned_by": "burnish"} for name in names]
        return json.dumps({"object": "list", "data": data}).encode()

    async def _asked(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        if not is_json(scope["headers"]):
            raise Refused(415, "invalid", "a request is JSON: send it with Content-Type: application/json")
        body = await read_body(receive, self._body_s)
        request = await read_aside(READERS[path_of(scope)], body)
        record = record_of(scope)
        record.read_bytes = len(body)
        if self._front.books.audit.prompts:
            record.asked = request.get("prompt", request.get("messages"))
        model = request.get("model") or (self._models()[0] if len(self._models()) == 1 else None)
        if not isinstance(model, str):
            self._check_there(bool(self._models()))
            there = ", ".join(filter(visit.caller.may_ask, self._models()))
            raise Refused(400, "model", f"the request must name a model; there are {there}", param="model")
        if not visit.caller.may_ask(model):
            said = f"the key {visit.caller.name!r} may not ask for {model[:100]!r}"
            raise Refused(403, "model", said, code="insufficient_permissions", param="model")
        if model not in self._models():
            self._check_there(False)
            raise Refused(404, "model", f"there is no model {model[:100]!r}", code="model_not_found", param="model")
        record.model, record.store = model, request.get("store")
        if record.store and not (self._front.desk is not None and self._front.desk.conversations):
            raise Refused(400, "invalid", "store: this service keeps no conversations; leave it out", param="store")
        visit.take(answers_of(request))
        await self._app(*with_request(scope, receive, request), send)

    def _check_there(self, there: bool) -> None:
        """Raise Refused where what is asked for is not there, and may be on its way."""
        if not there and not self._complete():
            said = "this service is starting, and has not all of its models yet; come again"
            raise Refused(503, "starting", said, code="overloaded", again_s=AGAIN_S)


def _called(path: str, method: str) -> Route | Refused:
    if path not in ROUTES:
        return Refused(404, "unknown_route", f"there is no {path[:200]}; the service has {', '.join(ROUTES)}")
    if method != ROUTES[path]:
        return Refused(405, "method", f"{path} takes {ROUTES[path]}, not {method}")
    return _CALLED[path]
