"""Tool calls in answers, as OpenAI's clients read them: what the policy wrote becomes `tool_calls`, read by the parser of its rollouts.

The model is asked for text and answers with text, as in training; only whoever gave `tools`, and not `tool_choice` "none", gets its calls
apart. Where `tool_choice` forces a call, the model's side holds sampling to calls (`serving.forced_calls`). An answer whose calls cannot
be read is an answer in text, as it was written, and so is one with arguments that a guardrail policy holds back. One with a call that the
policy's `[[tools]]` do not allow never goes out, however the answer ends: the policy's own words take its place. In a stream, a choice is
held until it has ended: until then nobody knows whether it is a call.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import string
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..envs.call_lines import call_lines
from ..envs.failures import EpisodeFailure
from ..envs.tool_calls import Malformed, ToolParser, find_parser
from ..envs.types import ToolCall
from ..guardrails.guard import Guard
from ..guardrails.leaves import leaves
from ..guardrails.tool_calls import check_calls, said_instead
from .asked import context_asked, may_call
from .audit import Record, record_of
from .event_stream import DONE, event
from .looking import Looks
from .requests import check_schema, invalid
from .wire import CHAT, path_of, read_request, with_length, with_request

PARSER_HEADER: Final = b"x-burnish-tool-parser"
"""In which the model's side says what reads its calls; clients do not see it."""
Aside = Callable[..., Awaitable[Any]]
"""Runs a function in another thread."""
HELD_BACK: Final[Mapping[str, Any]] = {"finish_reason": "content_filter", "stop_reason": None}
"""How a choice ends whose text the policy's takes the place of."""
_ID = string.ascii_letters + string.digits


class ToolCallsApp:
    """ASGI middleware between the strict application and the guard, which has read the text before it becomes calls.

    guard: looks once more at what a parser makes of the text, which may be something else than was written, and holds what is said beside
    calls to its context. looks: the threads for that.
    """

    def __init__(self, app: ASGIApp, guard: Guard | None = None, looks: Looks | None = None) -> None:
        self._app, self._guard = app, guard
        self._aside: Aside = asyncio.to_thread
        if looks is not None:
            self._aside = looks.at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) != CHAT:
            await self._app(scope, receive, send)
            return
        request = await read_request(scope, receive)
        tools = checked_tools(request.get("tools"))
        _check_choice(request.get("tool_choice"), tools, request)
        inner, handed_on = with_request(scope, receive, request)
        said = _Answer(send, tools if may_call(request) else (), self._guard, self._aside, record_of(scope))
        await self._app(inner, handed_on, said.take)


def forced_tool(choice: Any) -> tuple[bool, str | None]:
    """Whether a `tool_choice` forces a call, and the one tool that it names.

    Example: `forced_tool("required") == (True, None)`, `forced_tool({"type": "function", "function": {"name": "stop"}}) == (True, "stop")`.
    """
    match choice:
        case {"type": "function", "function": {"name": str(name)}}:
            return True, name
    return choice == "required", None


def _check_choice(choice: Any, tools: Sequence[Mapping[str, Any]], request: Mapping[str, Any]) -> None:
    forced, name = forced_tool(choice)
    if choice not in (None, "auto", "none") and not forced:
        said = 'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}'
        raise invalid(f"{said}, not {str(choice)[:60]}", "tool_choice")
    if choice is not None and not tools:
        raise invalid("tool_choice has no effect without tools", "tool_choice")
    if not forced:
        return
    there = [tool["function"]["name"] for tool in tools]
    if name is not None and name not in there:
        raise invalid(f"tool_choice names {name[:80]!r}, and the tools are {', '.join(there)[:200]}", "tool_choice")
    if (request.get("response_format") or {"type": "text"}) != {"type": "text"}:
        raise invalid("response_format has no effect beside a tool_choice that forces a call", "response_format")
    check_schema(list(tools), "tools")


def checked_tools(tools: Any) -> Sequence[Mapping[str, Any]]:
    """The tools of a request. Raises Refused, 400, naming the first that is no function."""
    if tools is not None and not isinstance(tools, list):
        raise invalid("tools must be a list of functions", "tools")
    for i, tool in enumerate(tools or ()):
        match tool:
            case {"type": "function", "function": {"name": str(), **rest}}:
                parameters = rest.get("parameters", {})
                if isinstance(parameters, Mapping) and isinstance(parameters.get("properties", {}), Mapping):
                    continue
        said = f'tools[{i}] must read {{"type": "function", "function": {{"name": …, "parameters": {{a JSON schema}}}}}}'
        raise invalid(said, "tools")
    return tools or ()


@dataclass(frozen=True, slots=True)
class _Read:
    """What becomes of a choice whose text holds calls: fields of its message, and how it ended."""

    message: dict[str, Any]
    ended: Mapping[str, Any]


@dataclass
class _Answer:
    """One answer on its way out."""

    send: Send
    tools: Sequence[Mapping[str, Any]]
    guard: Guard | None
    aside: Aside
    record: Record
    start: Message = field(default_factory=dict)
    parser: ToolParser | None = None
    context: str | None = None
    streams: bool = False
    parts: list[bytes] = field(default_factory=list)
    rest: bytes = b""
    held: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            named = {name.lower(): value for name, value in message.get("headers", ())}
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != PARSER_HEADER]
            self.start = {**message, "headers": headers}
            if self.tools and message["status"] == 200 and PARSER_HEADER in named:
                self.parser = await asyncio.to_thread(find_parser, named[PARSER_HEADER].decode())  # imports vLLM for those of vLLM's
                if self.guard is not None and self.record.read is not None:
                    self.context = await self.aside(context_asked, self.guard.policy, self.record.read)
                self.streams = named.get(b"content-type", b"").startswith(b"text/event-stream")
            if self.parser is None or self.streams:
                await self.send(self.start)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.parser is None:
            await self.send(message)
        elif self.streams:
            made = b"".join(await self.aside(self._events, body))
            if not more:
                made += b"".join(await self.aside(self._unended)) + self.rest
            if made or not more:
                await self.send({**message, "body": made})
        else:
            self.parts.append(body)
            if not more:
                whole = await self.aside(self._whole, json.loads(b"".join(self.parts)))
                await self.send({**self.start, "headers": with_length(self.start["headers"], len(whole))})
                await self.send({"type": "http.response.body", "body": whole})

    def _whole(self, answer: dict[str, Any]) -> bytes:
        for choice in answer.get("choices", ()):
            read = self._read(choice["message"].get("content"), choice.get("finish_reason"), choice["index"])
            if read is not None:
                choice["message"] |= read.message
                choice |= read.ended
        return json.dumps(answer).encode()

    def _events(self, piece: bytes) -> list[bytes]:
        """The events that may go out after this piece: those without choices, and of every choice that has ended what came of it."""
        *whole, self.rest = (self.rest + piece).split(b"\n\n")
        return [made for one in whole if one for made in self._event(one)]

    def _event(self, raw: bytes) -> list[bytes]:
        if raw.startswith(DONE):
            return [*self._unended(), raw + b"\n\n"]
        row = json.loads(raw[6:]) if raw.startswith(b"data: ") else {}
        if not row.get("choices"):
            return [raw + b"\n\n"]
        out = list[bytes]()
        for choice in row["choices"]:
            events = self.held.setdefault(choice["index"], [])
            events.append(row | {"choices": [choice]})
            if choice.get("finish_reason") is not None:
                out += [event(one) for one in self._ended(self.held.pop(choice["index"]))]
        return out

    def _unended(self) -> list[bytes]:
        """What is held of choices that nobody ended, as what is cut short goes out; nothing where it had to follow from a context."""
        held, self.held = self.held, {}
        if self.context is not None:
            return []
        return [event(one) for events in held.values() for one in self._ended(events)]

    def _ended(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What goes out of a choice: its events as they came, or one of its calls."""
        said = "".join((one["choices"][0].get("delta") or {}).get("content") or "" for one in events)
        last = events[-1]["choices"][0]
        read = self._read(said, last["finish_reason"], last["index"])
        if read is None:
            return events
        delta = {"role": "assistant", **read.message}
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": i, **row} for i, row in enumerate(delta["tool_calls"])]
        return [events[-1] | {"choices": [{**last, "delta": delta, **read.ended}]}]

    def _read(self, said: str | None, finish: str | None, index: int) -> _Read | None:
        """What becomes of the choice of an index, as `_read_own` has it of what the model wrote; the policy's warnings stay below that."""
        below = self.record.below.get(index, "")
        read = self._read_own(said.removesuffix(below), finish) if said else None
        if read is None or read.ended is HELD_BACK:
            return read
        return replace(read, message=read.message | {"content": f"{read.message['content'] or ''}{below}".lstrip("\n") or None})

    def _read_own(self, said: str, finish: str | None) -> _Read | None:
        """What an answer becomes that holds calls, or does not follow from its context; None where it stays as it is: without calls, cut
        short or held back, or with arguments that are."""
        assert self.parser is not None
        if not said or finish == "content_filter":
            return None
        found = self.parser(said, self.tools)
        instead = self._instead(found.before if isinstance(found, Malformed) else found)
        if instead:
            return _Read({"content": instead}, HELD_BACK)
        if isinstance(found, Malformed) or not found or finish != "stop" or self._are_held_back(found):
            return self._following(said)
        around = _around(said, found, self.parser, self.tools)
        made = _Read({"content": around, "tool_calls": [_row(call) for call in found]}, {"finish_reason": "tool_calls"})
        beside = self._following(around) if around else None
        if beside is None or beside.ended:
            return beside or made
        return replace(made, message=made.message | beside.message)

    def _following(self, said: str) -> _Read | None:
        """What becomes of a text that does not follow from the context as the policy wants; None of one that does, or needs not."""
        if self.guard is None or self.context is None:
            return None
        decision = self.guard.of_contexts_alone().check(said, "output", self.context)
        if decision.action == "allow":
            return None
        self.record.decisions.append(decision)
        return _Read({"content": decision.reply}, HELD_BACK if decision.blocked else {})

    def _instead(self, found: Sequence[ToolCall]) -> str:
        """What the policy says in the place of calls that it does not allow; "" where it allows them all."""
        if self.guard is None:
            return ""
        decided = check_calls(self.guard.policy, found)
        self.record.decisions += decided
        return said_instead(self.guard.policy, decided)

    def _are_held_back(self, found: Sequence[ToolCall]) -> bool:
        """Whether the policy lets the arguments not out as the tool would get them, or cannot decide."""
        said = "\n".join(piece.text for call in found for piece in leaves(dict(call.arguments)))
        if self.guard is None or not said:
            return False
        try:
            decision = self.guard.check(said, "output")
        except (ValueError, EpisodeFailure):
            return True
        if decision.action in ("allow", "warn"):
            return False
        self.record.decisions.append(decision)
        return True


def _row(call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI has it. Nine letters and digits are an id that every chat template takes, Mistral's too."""
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    id = "".join(secrets.choice(_ID) for _ in range(9))
    return {"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _around(said: str, found: Sequence[ToolCall], parser: ToolParser, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """What an answer says beside its calls."""
    begin, end = call_lines(said, found, parser, tools)
    return "\n".join(part for part in (said[:begin].strip(), said[end:].strip()) if part) or None
