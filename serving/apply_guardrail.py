"""`POST /guardrail/NAME/version/VERSION/apply`: Bedrock's ApplyGuardrail on this gateway, so that its clients find it here.

boto3 is pointed at it by `endpoint_url`; keys come as bearer tokens (`AWS_BEARER_TOKEN_BEDROCK`).
"""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from ..envs.failures import EpisodeFailure
from ..guardrails.bedrock import ApplyRequest, decide, is_meant, read_request, respond
from ..guardrails.guard import Guard
from ..guardrails.types import Decision
from .admission import Refused, Visit
from .audit import record_of
from .front import Front
from .keys import Route
from .looking import Looks, unless_gone
from .wire import BODY_S, HEALTH, answer, is_json, live, read_aside, read_body, read_json

MOST_VALUES: Final = 2_000
"""In a request: one of a hundred texts, each with all the qualifiers that there are, has not half as many."""
APPLY: Final = re.compile(r"/guardrail/([^/]{1,2048})/version/([^/]{1,64})/apply/?")


class ApplyGuardrailApp:
    """ASGI middleware that answers ApplyGuardrail, and `/health` where nothing stands behind it; all else goes on to `app`."""

    def __init__(self, guard: Guard, front: Front, app: ASGIApp | None = None, body_s: float = BODY_S, looks: Looks | None = None) -> None:
        self._guard, self._front, self._app, self._body_s = guard, front, app, body_s
        self._looks = looks or Looks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = APPLY.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None and self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await live(receive, send)
        elif found is None and scope["path"].rstrip("/") == HEALTH:
            await answer(send, 200, b"{}")
        else:
            assert scope["type"] == "http", "no other kind of connection is taken"

            async def applied(scope: Scope, send: Send, visit: Visit) -> None:
                await answer(send, 200, await self._applied(scope, receive))

            await self._front.handle(scope, send, self._called(scope, found), applied, _fail)

    def _called(self, scope: Scope, found: re.Match[str] | None) -> Route | Refused:
        policy = self._guard.policy
        if found is None:
            return Refused(404, "unknown_route", f"there is no {scope['path'][:200]}", code="UnknownOperationException")
        if scope["method"] != "POST":
            return Refused(405, "method", "ApplyGuardrail takes POST")
        if not is_meant(policy, unquote(found[1]), unquote(found[2])):
            said = f"the guardrail here is {policy.name!r} with version {policy.version} or DRAFT"
            return Refused(404, "unknown_route", said, code="ResourceNotFoundException")
        return "guardrail"

    async def _applied(self, scope: Scope, receive: Receive) -> bytes:
        if not is_json(scope["headers"]):
            raise Refused(415, "invalid", "ApplyGuardrail is JSON: send it with Content-Type: application/json")
        body = await read_body(receive, self._body_s)
        try:
            request = await read_aside(_read, body)
            decision, answered = await unless_gone(scope, receive, self._looks.at(_decided, self._guard, request))
        except ValueError as error:
            raise Refused(400, "invalid", str(error)[:500]) from None
        except EpisodeFailure as error:
            raise Refused(503, "guard", f"a detector does not answer: {error.failure.kind}") from None
        record_of(scope).decisions.append(decision)
        return answered


def _decided(guard: Guard, request: ApplyRequest) -> tuple[Decision, bytes]:
    """What becomes of a request, and the answer that says so, whose text may be many times as long where each letter is redacted."""
    decision = decide(guard, request)
    return decision, json.dumps(respond(guard.policy, request, decision)).encode()


def _read(body: bytes) -> ApplyRequest:
    return read_request(read_json(body, most=MOST_VALUES))


def serve_forever(app: ASGIApp, port: int, said: Callable[[str], None]) -> None:
    """Serve an application on loopback until SIGINT or SIGTERM. said: called with the URL. Raises ValueError when the port is taken."""
    import uvicorn

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(f"--port: 127.0.0.1:{port} cannot be used: {error.strerror}; give another, or 0 for a free one") from None
        listening.listen()
        said(f"http://127.0.0.1:{listening.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=2)).run([listening])


async def _fail(send: Send, refused: Refused) -> None:
    """An error as Bedrock has them; who may not call is told 403."""
    status = 403 if refused.status == 401 else refused.status
    kinds = {403: "AccessDeniedException", 429: "ThrottlingException", 503: "ServiceUnavailableException"}
    other = "InternalServerException" if status >= 500 else "ValidationException"
    kind = refused.code if refused.status == 404 else kinds.get(status, other)
    said = "this service needs an API key: set AWS_BEARER_TOKEN_BEDROCK" if refused.reason == "no_key" else refused.message
    again = [(b"retry-after", str(math.ceil(refused.again_s)).encode())] if refused.again_s is not None else []
    await answer(send, status, json.dumps({"message": said}).encode(), b"application/json", (b"x-amzn-errortype", kind.encode()), *again)
