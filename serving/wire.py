"""Requests and answers as ASGI has them: bodies read whole within bounds and handed on, answers and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import math
import traceback
from collections.abc import Callable
from typing import Any, Final, TypeVar

from starlette.types import Message, Receive, Scope, Send

from ..rpc.payload import deeper_than
from .admission import Refused

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
ANSWERED: Final = (CHAT, COMPLETIONS)
"""What a model answers."""
HEALTH: Final = "/health"
READY: Final = "/ready"
PROBES: Final = (HEALTH, READY)
"""What tells whoever watches the service how it is: without a key, and without a word."""
USAGE: Final = "burnish.usage"
"""The type of a message from the engine to the meter: what a request has taken so far, as `prompt_tokens` and `completion_tokens`."""
_REQUEST: Final = "burnish.request"
_CLIENT: Final = "burnish.client"
"""In a scope: the request as whoever stands before handed it on."""
_FRAMING: Final = (b"content-length", b"transfer-encoding")
LARGEST_BODY: Final = 4 * 2**20
AT_ONCE_BYTES: Final = 128 << 10
"""Of a body that is read on the event loop: one of 4 MB may take a part of a second, and everybody else would wait for it."""
MAX_DEPTH: Final = 64
MOST_VALUES: Final = 300_000
"""In a request: 128 prompts of 2,048 token ids have fewer."""
BODY_S: Final = 30.0
"""Seconds that a client has to send a request."""
T = TypeVar("T")


def path_of(scope: Scope) -> str:
    """Example: `path_of({"path": "/v1/models/"}) == "/v1/models"`."""
    return str(scope["path"].rstrip("/")) or "/"


def post_scope(path: str, length: int) -> Scope:
    """The scope of a request of JSON that comes from inside."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    http: Scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": "POST"}
    where = {"path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": None, "server": None}
    return {**http, **where, "headers": headers}


def asked_once(body: bytes) -> Receive:
    """What such a request is read from: whoever asked does not hang up, the call is cancelled."""
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets this event")

    return receive


async def read_body(receive: Receive, seconds: float | None = None, most: int = LARGEST_BODY) -> bytes:
    """The body of a request. Raises Refused when it has more than `most` bytes, takes longer than `seconds`, or its client is gone."""
    chunks, size = list[bytes](), 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(499, "gone", "the client is gone")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > most:
                    said = f"{most // 2**20} MB" if most >= 2**20 else f"{most // 2**10} KB"
                    raise Refused(413, "too_large", f"the request is larger than {said}")
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise Refused(408, "too_slow", f"the request did not arrive within {seconds:.0f} s") from None


async def read_aside(read: Callable[[bytes], T], body: bytes) -> T:
    """What a body is read as: at once, or in a thread where it is so large that everybody else would wait for it. Raises as `read` does."""
    return read(body) if len(body) <= AT_ONCE_BYTES else await asyncio.to_thread(read, body)


def read_json(body: bytes, depth: int = MAX_DEPTH, most: int = MOST_VALUES, **parsing: Any) -> Any:
    """The JSON of a body. parsing: of `json.loads`. Raises ValueError for what is none, has more than `most` values, or is nested too deep:
    a body of empty lists is a thousand times as large once it is read."""
    text = body.decode("utf-8-sig")
    if _values(text) > most and _values_outside_texts(text, most) > most:
        raise ValueError(f"it has more than {most:,} values")
    try:
        value = json.loads(text, **parsing)
    except RecursionError:
        raise ValueError(f"it is nested more than {depth} levels deep") from None
    if deeper_than(value, depth):
        raise ValueError(f"it is nested more than {depth} levels deep")
    return value


def _values(text: str) -> int:
    """No fewer than there are in a JSON text."""
    return text.count(",") + text.count("[") + text.count("{")


def _values_outside_texts(text: str, most: int) -> int:
    """The same, but for what stands in the texts of the JSON."""
    bare = text.replace("\\\\", "").replace('\\"', "")
    if bare.count('"') > 4 * most:  # a name and a text for each value
        return most + 1
    return _values("".join(bare.split('"')[::2]))


async def read_request(scope: Scope, receive: Receive) -> Any:
    """The request of a call: as it was handed on, not to be changed, else what the body holds. Raises as `read_body` does."""
    return scope[_REQUEST] if _REQUEST in scope else json.loads(await read_body(receive))


def with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    """Headers with another length of the body."""
    kept = ((name, value) for name, value in headers if name.lower() not in _FRAMING)
    return [*kept, (b"content-length", str(length).encode())]


def with_request(scope: Scope, receive: Receive, request: Any) -> tuple[Scope, Receive]:
    """The same call with this request, which those of the service take as it is, and whoever else as a body, which is written only then.

    Behind it comes whatever the client still sends: its disconnect ends the generation.
    """
    pending = [request]

    async def handed_on() -> Message:
        if pending:
            return {"type": "http.request", "body": json.dumps(pending.pop()).encode(), "more_body": False}
        return await receive()

    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _FRAMING]
    return {**scope, "headers": headers, _REQUEST: request, _CLIENT: client_of(scope, receive)}, handed_on


def client_of(scope: Scope, receive: Receive) -> Receive:
    """Where whatever a client sends behind its request comes from: without writing the request as a body for each that handed it on."""
    found: Receive = scope.get(_CLIENT, receive)
    return found


async def answer(send: Send, status: int, body: bytes, kind: bytes = b"application/json", *more: tuple[bytes, bytes]) -> None:
    """Send an answer in one piece."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refused: Refused) -> None:
    """Say why a request is not answered, as OpenAI does. Its clients try again after `retry-after`, and not where nothing will change."""
    body = json.dumps({"error": error_of(refused)}).encode()
    more = [(b"www-authenticate", b"Bearer")] if refused.status == 401 else []
    if refused.again_s is not None:
        more.append((b"retry-after", str(max(1, math.ceil(refused.again_s))).encode()))
    elif refused.status in (429, 504):
        more.append((b"x-should-retry", b"false"))
    await answer(send, refused.status, body, b"application/json", *more)


def error_of(refused: Refused) -> dict[str, Any]:
    """The error in OpenAI's shape."""
    kinds = {"requests": "requests", "parallel": "requests", "tokens": "tokens", "budget": "insufficient_quota"}
    kind = kinds.get(refused.reason) if refused.status == 429 else "server_error" if refused.status >= 500 else "invalid_request_error"
    return {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code or refused.status}


def told_where(error: BaseException) -> str:
    """The kind of an error and where it was raised, for a log: what it says may hold what a client said."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"


def is_json(headers: Any) -> bool:
    """Whether a request says that it is JSON. A page in somebody's browser can send every other kind to this machine unasked."""
    kinds = [value.partition(b";")[0].strip().lower() for name, value in headers if name.lower() == b"content-type"]
    return kinds == [b"application/json"]


def is_stream(start: Message) -> bool:
    """Whether an answer that starts so is events."""
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/event-stream") for kind in kinds)


async def live(receive: Receive, send: Send) -> None:
    """The lifespan of an application that has nothing to start or end."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        assert message["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
