"""`POST /guardrail/NAME/version/VERSION/apply`: Bedrock's ApplyGuardrail on this gateway, so that its clients find it here.

boto3 is pointed at it by `endpoint_url`; keys come as bearer tokens (`AWS_BEARER_TOKEN_BEDROCK`).
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import uuid
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from ..envs.failures import EpisodeFailure
from ..guardrails.bedrock import apply, is_meant, read_request
from ..guardrails.guard import Guard
from ..rpc.payload import deeper_than
from .app import HEALTH, LARGEST_BODY, MAX_DEPTH, ApiKeys, read_body
from .audit import Audit

APPLY: Final = re.compile(r"/guardrail/([^/]{1,2048})/version/([^/]{1,64})/apply/?")


class ApplyGuardrailApp:
    """ASGI middleware that answers ApplyGuardrail, and `/health` where nothing stands behind it; all else goes on to `app`."""

    def __init__(self, guard: Guard, audit: Audit, keys: ApiKeys, app: ASGIApp | None = None) -> None:
        self._guard, self._audit, self._keys, self._app = guard, audit, keys, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = APPLY.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None and self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        elif found is None:
            assert scope["type"] == "http", "no other kind of connection is taken"
            healthy = scope["path"].rstrip("/") == HEALTH
            await (_send(send, 200, {}) if healthy else _fail(send, 404, "UnknownOperationException", f"there is no {scope['path'][:200]}"))
        elif scope["method"] != "POST":
            await _fail(send, 405, "ValidationException", "ApplyGuardrail takes POST")
        elif not self._keys.let_in(dict(scope["headers"]).get(b"authorization", b"")):
            await _fail(send, 403, "AccessDeniedException", "this service needs an API key: set AWS_BEARER_TOKEN_BEDROCK")
        elif not is_meant(self._guard.policy, unquote(found[1]), unquote(found[2])):
            meant = f"{self._guard.policy.name!r} with version {self._guard.policy.version} or DRAFT"
            await _fail(send, 404, "ResourceNotFoundException", f"the guardrail here is {meant}")
        else:
            await self._apply(receive, send)

    async def _apply(self, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            await _fail(send, 413, "ValidationException", f"the request is larger than {LARGEST_BODY // 2**20} MB")
            return
        try:
            given = json.loads(body)
            if deeper_than(given, MAX_DEPTH):
                raise ValueError(f"the request is nested more than {MAX_DEPTH} levels deep")
            answer = await asyncio.to_thread(apply, self._guard, read_request(given))
        except (ValueError, RecursionError) as error:
            await _fail(send, 400, "ValidationException", str(error)[:500] or "the request is nested too deep")
            return
        except EpisodeFailure as error:
            await _fail(send, 503, "ServiceUnavailableException", f"a detector does not answer: {error.failure.kind}")
            return
        self._audit.note({"request": f"apply-{uuid.uuid4().hex}", "policy": self._guard.policy.id, "action": answer["action"]})
        await _send(send, 200, answer)


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


async def _live(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        assert message["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _fail(send: Send, status: int, kind: str, message: str) -> None:
    await _send(send, status, {"message": message}, kind)


async def _send(send: Send, status: int, row: dict[str, object], kind: str | None = None) -> None:
    body = json.dumps(row).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"x-amzn-errortype", kind.encode())] if kind is not None else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
