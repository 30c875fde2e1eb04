"""What stands in front of the model: a small, strict part of the OpenAI API.

The application behind it (vLLM's) accepts many more routes than a chat service needs and ignores request fields that it does not know.
Here only the chat routes exist, and a field that would have no effect is an error of the client's, said so with status 400. What a
request asks to be fetched (images, sound, files) is refused: a client does not have this server call out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..rpc.payload import deeper_than
from ..rpc.security import read_token

CHAT: Final = "/v1/chat/completions"
HEALTH: Final = "/health"
ROUTES: Final = {CHAT: "POST", "/v1/models": "GET", HEALTH: "GET"}
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


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that let a request in, as SHA-256 digests: neither a key nor anything it could be read from is kept, sent or logged.

    Without any, every request is let in. Example: `ApiKeys.read("", "keys.txt").let_in(b"Bearer sk-1")`.
    """

    digests: tuple[bytes, ...] = ()

    @staticmethod
    def read(env: str, file: str) -> ApiKeys:
        """The key in the environment variable, or the keys in the file, one a line. Raises ValueError when none is fit."""
        if env:
            where, keys = f"environment variable {env}", [read_token(env, "")]
        elif file:
            where = f"file {file}"
            try:
                keys = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"API keys: {where} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
        else:
            return ApiKeys()
        if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise ValueError(f"API keys: {where} must hold one key a line, printable ASCII without spaces")
        return ApiKeys(tuple(_digest(key.encode()) for key in keys))

    def let_in(self, authorization: bytes) -> bool:
        """Whether the value of an `Authorization` header is that of a key. Takes the same time whatever it is."""
        kind, _, key = authorization.partition(b" ")
        found = False
        for digest in self.digests:
            found |= hmac.compare_digest(digest, _digest(key.strip()))
        return not self.digests or (found and kind.lower() == b"bearer")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class StrictChatApp:
    """ASGI middleware that lets through requests with a key, the chat routes and honoured fields only. `/health` needs no key."""

    def __init__(self, app: ASGIApp, keys: ApiKeys = ApiKeys()) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        if path != HEALTH and not self._keys.let_in(dict(scope["headers"]).get(b"authorization", b"")):
            await refuse(send, 401, "this service needs an API key: send it as Authorization: Bearer KEY", code="invalid_api_key")
        elif path not in ROUTES:
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
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and not _only_text(message.get("content")):
            return 'messages may hold text only: a part of a content reads {"type": "text", "text": …}; nothing is fetched', "messages"
    return None


def _only_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


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


async def refuse(send: Send, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code or status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
