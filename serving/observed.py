"""Answers that went out whole, for whoever looks at them afterwards: nobody waits for that, and it costs an answer nothing but a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .audit import Record, record_of
from .event_stream import DONE
from .requests import prompts_of
from .wire import ANSWERED, is_stream, path_of

LARGEST_ANSWER: Final = 4 * 2**20
"""Bytes of an answer on the wire that is looked at: one with log-probabilities of everything is larger."""

STRICT: Final = ConfigDict(extra="forbid", frozen=True, strict=True)

Observe = Callable[["Answered"], None]
"""Called with an answer right before the last of it goes out, on the event loop: it must not take long."""


class Question(BaseModel):
    """What the model was asked, as it read it: a guardrail policy has taken out what it redacts."""

    model_config = STRICT

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []


class Prompted(BaseModel):
    """What the model was to go on from: the prompts of a completion, texts or token ids, as it read them. echo: whether its answers repeat
    them."""

    model_config = STRICT

    prompts: list[str | list[int]]
    echo: bool = False

    def of_choice(self, choice: int, choices: int) -> Prompted:
        """The prompt of one of so many choices: each prompt has as many, in order."""
        return self.model_copy(update={"prompts": [self.prompts[choice * len(self.prompts) // choices]]})


class Choice(BaseModel):
    """One answer, as its client read it; a completion is what the assistant said."""

    model_config = STRICT

    message: dict[str, Any]
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it went out. streams: whether `body` is events. request: what the model read."""

    record: Record
    request: Mapping[str, Any]
    body: bytes
    streams: bool

    @property
    def asked(self) -> Question | Prompted:
        if "prompt" in self.request:
            return Prompted(prompts=prompts_of(self.request), echo=bool(self.request.get("echo")))
        return Question(messages=list(self.request["messages"]), tools=list(self.request.get("tools") or ()))

    def choices(self) -> list[Choice]:
        """The choices in order; none where the answer broke off."""
        if not self.streams:
            return [_choice(_message(one, "message"), one.get("finish_reason")) for one in json.loads(self.body)["choices"]]
        said: dict[int, _Said] = {}
        events = [raw for raw in self.body.split(b"\n\n") if raw]
        for raw in events:
            row = json.loads(raw[6:]) if raw.startswith(b"data: ") and not raw.startswith(DONE) else {}
            if "error" in row:
                return []
            for choice in row.get("choices", ()):
                said.setdefault(choice["index"], _Said()).add(choice)
        whole = bool(events) and events[-1].startswith(DONE) and all(one.finish_reason for one in said.values())
        return [said[index].choice() for index in sorted(said)] if whole else []


@dataclass(slots=True)
class _Said:
    """A choice of a stream as far as it has come."""

    text: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        delta = _message(choice, "delta")
        self.text.append(delta.get("content") or "")
        for call in delta.get("tool_calls") or ():
            self.calls[call["index"]] = {key: value for key, value in call.items() if key != "index"}
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def choice(self) -> Choice:
        calls = [self.calls[index] for index in sorted(self.calls)]
        return _choice({"content": "".join(self.text), "tool_calls": calls}, self.finish_reason)


def _message(choice: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What a choice says, of a chat or of a completion."""
    return {"content": choice["text"]} if "text" in choice else choice.get(key) or {}


def _choice(message: Mapping[str, Any], finish_reason: str | None) -> Choice:
    calls = message.get("tool_calls") or []
    kept = {"role": "assistant", "content": message.get("content") or "", **({"tool_calls": calls} if calls else {})}
    return Choice(message=kept, finish_reason=finish_reason)


class ObservedChatApp:
    """ASGI middleware right behind the strict application, which sees what clients do. What a client wants not stored nobody looks at."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observe]) -> None:
        self._app, self._observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        if scope["type"] != "http" or path_of(scope) not in ANSWERED or record.store is False:
            await self._app(scope, receive, send)
            return
        parts, size, good, streams = list[bytes](), 0, False, False

        async def watched(message: Message) -> None:
            nonlocal size, good, streams
            if message["type"] == "http.response.start":
                good, streams = message["status"] == 200, is_stream(message)
            elif good:
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                good = size <= LARGEST_ANSWER
                if good and not message.get("more_body", False) and record.read is not None:
                    answered = Answered(record, record.read, b"".join(parts), streams)
                    for observe in self._observers:
                        observe(answered)
            await send(message)

        await self._app(scope, receive, watched)
