"""What stands in front of the model: a small, strict part of the OpenAI API.

The application behind it (vLLM's) accepts many more routes than a chat service needs and ignores request fields that it does not know.
Here only the chat routes exist, and a field that would have no effect is an error of the client's, said so with status 400.
"""

from __future__ import annotations

import json
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..rpc.payload import deeper_than

CHAT: Final = "/v1/chat/completions"
ROUTES: Final = {CHAT: "POST", "/v1/models": "GET", "/health": "GET"}
LARGEST_BODY: Final = 4 * 2**20
MAX_DEPTH: Final = 64
TOO_DEEP: Final = f"the request is nested more than {MAX_DEPTH} levels deep"

CHAT_FIELDS: Final = frozenset({
    "messages", "tools", "model", "n", "stream", "stream_options", "user",
    "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
    "max_tokens", "max_completion_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos",
    "logprobs", "top_logprobs", "return_token_ids", "skip_special_tokens", "add_generation_prompt", "continue_final_message",
})  # fmt: skip
"""Request fields that the service honours. `user` only names the caller and changes no answer."""


class StrictChatApp:
    """ASGI middleware that lets through the chat routes and honoured fields only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if path not in ROUTES:
            await refuse(send, 404, f"there is no {path}; the service has {', '.join(ROUTES)}")
        elif scope["method"] != ROUTES[path]:
            await refuse(send, 405, f"{path} takes {ROUTES[path]}, not {scope['method']}")
        elif path != CHAT:
            await self._app(scope, receive, send)
        else:
            await self._chat(scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            await refuse(send, 413, f"the request is larger than {LARGEST_BODY // 2**20} MB")
            return
        problem = check_chat_request(body)
        if problem:
            await refuse(send, 400, problem[0], problem[1])
            return
        await self._app(scope, replay(body, receive), send)


def check_chat_request(body: bytes) -> tuple[str, str | None] | None:
    """What is wrong with a chat request (a sentence, and the field when it is one), or None.

    Only what the application behind would let pass in silence is looked at; it checks the values itself.
    """
    try:
        request = json.loads(body)
    except RecursionError:
        return TOO_DEEP, None
    except ValueError as error:
        return f"the request is not valid JSON: {error}", None
    if deeper_than(request, MAX_DEPTH):
        return TOO_DEEP, None
    if not isinstance(request, dict):
        return "the request must be a JSON object", None
    unknown = sorted(key for key in request if key not in CHAT_FIELDS)
    if unknown:
        return f"this service does not support the parameter {unknown[0]!r}; it has {', '.join(sorted(CHAT_FIELDS))}", unknown[0]
    return None


async def read_body(receive: Receive) -> bytes | None:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(chunks)
        chunks.append(message.get("body", b""))
        if sum(map(len, chunks)) > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """Hand the body on once, then whatever the client still sends: its disconnect ends the generation."""
    pending = [body]

    async def handed_on() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return handed_on


async def refuse(send: Send, status: int, message: str, param: str | None = None) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
