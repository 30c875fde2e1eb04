"""Shadow traffic: copies of some callers' requests go to another version, whose answers nobody gets, and both answers are compared.

A copy costs its caller nothing: it is not metered, it is not waited for, and what becomes of it, failure included, reaches the records
only. There are so many at a time and no more; what comes then is counted as dropped. Texts are kept where the audit log holds prompts.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Message, Send

from .audit import Compared, Outcome, Record
from .choices import said
from .event_stream import DONE

MOST_SHADOWS: Final = 64
"""Copies under way at a time."""
MOST_BYTES: Final = 2**20
"""Of an answer that is looked at: what is longer is not compared."""

Ask = Callable[[str, str, bytes], AsyncIterator[Message]]
"""Puts a request (version, path, body) to a version: its answer as ASGI messages."""


@dataclass(slots=True)
class Heard:
    """An answer on its way: what of it is kept to be compared."""

    status: int = 0
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _parts: list[bytes] = field(default_factory=list)
    _size: int = 0

    def before(self, send: Send) -> Send:
        """A `send` that is listened to."""

        async def heard(message: Message) -> None:
            self.take(message)
            await send(message)

        return heard

    def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if message["type"] != "http.response.body":
            return
        self._size += len(message.get("body", b""))
        if self._size <= MOST_BYTES:
            self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            self.end()

    def end(self) -> None:
        """Nothing more will come."""
        if not self.over.is_set():
            self.seconds = time.monotonic() - self.began
            self.over.set()

    def texts(self) -> list[str] | None:
        """What every choice says; None where there is no whole answer, or a longer one than is looked at."""
        if self.status != 200 or self._size > MOST_BYTES:
            return None
        body = b"".join(self._parts)
        rows = [json.loads(one[6:]) for one in body.split(b"\n\n") if one.startswith(b"data: ") and not one.startswith(DONE)]
        is_stream = bool(rows)
        if not is_stream:
            try:
                rows = [json.loads(body)]
            except ValueError:  # vLLM's answer to whoever has hung up
                return None
        if not all(isinstance(row, dict) and "choices" in row for row in rows) or (is_stream and DONE not in body):
            return None
        found: dict[int, str] = {}
        for row in rows:
            for choice in row["choices"]:
                found[choice["index"]] = found.get(choice["index"], "") + said(choice)
        return [found[index] for index in sorted(found)]


class Shadows:
    """Sends copies and compares. note: told of each once both answers are there. seconds: how long each may take.

    For one event loop.
    """

    def __init__(self, ask: Ask, note: Callable[[Compared], None], seconds: float, most: int = MOST_SHADOWS) -> None:
        self._ask, self._note, self._seconds, self._most = ask, note, seconds, most
        self._under_way = set[asyncio.Future[None]]()

    def copy(self, version: str, path: str, request: Mapping[str, Any], record: Record, own: Heard) -> None:
        """Begin to send a copy to a version; returns at once. own: the answer that the caller gets."""
        if len(self._under_way) >= self._most:
            self._note(Compared(record, version, "dropped"))
            return
        whole = {key: value for key, value in request.items() if key != "stream_options"} | {"model": version, "stream": False}
        # A context of its own: Serve cancels what it takes for a part of the caller's request when the caller hangs up.
        compared = self._compare(version, path, json.dumps(whole).encode(), record, own)
        task = asyncio.get_running_loop().create_task(compared, context=contextvars.Context())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _compare(self, version: str, path: str, body: bytes, record: Record, own: Heard) -> None:
        copy = Heard()
        try:
            async with asyncio.timeout(self._seconds):
                async for message in self._ask(version, path, body):
                    copy.take(message)
        except (Exception, asyncio.CancelledError):  # whatever befalls a copy is counted, and is nobody's error
            copy.status = 0
        copy.end()
        await own.over.wait()  # the request's own deadline ends it
        ours, theirs = own.texts(), copy.texts()
        outcome: Outcome = "unanswered" if ours is None else "failed" if theirs is None else "same" if ours == theirs else "different"
        self._note(Compared(record, version, outcome, copy.status, copy.seconds, own.seconds, ours, theirs))
