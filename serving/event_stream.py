"""Server-sent events of an answer, with a guard on the text of every choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..guardrails.asks import Asks
from ..guardrails.guard import Guard
from ..guardrails.stream import StreamGuard
from .audit import Record
from .choices import said, saying

DONE = b"data: [DONE]"


def event(row: dict[str, Any]) -> bytes:
    """One event with a row of JSON."""
    return b"data: " + json.dumps(row).encode() + b"\n\n"


def says_nothing(body: bytes) -> bool:
    """Whether a piece of a body holds nothing of an answer yet: no byte, or events that only say whose answer begins.

    Example: `says_nothing(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}))`.
    """
    return all(_only_begins(raw) for raw in body.split(b"\n\n") if raw)


def _only_begins(raw: bytes) -> bool:
    try:
        row = json.loads(raw.removeprefix(b"data: "))
    except ValueError:
        return False
    choices = (row.get("choices") if isinstance(row, dict) else None) or []
    return bool(choices) and not any(_tells(choice) for choice in choices)


def _tells(choice: dict[str, Any]) -> bool:
    """Whether there is more to a choice of a stream than its index and a role."""
    told = {**choice, **(choice.get("delta") or {})}
    return any(value for key, value in told.items() if key not in ("index", "role", "delta"))


class GuardedStream:
    """Takes the bytes of a stream and gives those that may go out: `take` is called with each piece, in order.

    warning: what stands below the answer in any case. record: where the decision on each choice is noted, and what stands below it.
    count: of choices that were asked for, some of which may begin late. before: what a choice goes on from, by its index. `over`: every
    one has been blocked, so that nothing more will go out. asks: what all choices together take the calls of their judges from. context:
    what each must follow from.
    """

    def __init__(
        self,
        guard: Guard,
        warning: str,
        record: Record,
        count: int = 1,
        before: Callable[[int], str] = lambda _: "",
        asks: Asks | None = None,
        context: str | None = None,
    ) -> None:
        self._guard, self._warning, self._record, self._count = guard, warning, record, count
        self._before, self._asks, self._context = before, asks, context
        self._rest = b""
        self._choices: dict[int, StreamGuard] = {}
        self._closed: set[int] = set()
        self.is_events = True
        self.over = False

    def take(self, piece: bytes) -> bytes:
        """The events of a piece as they may go out. Raises what `Guard.check` raises."""
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        made = b"".join(self._event(one) for one in whole if one and not self.over)
        return made

    def _event(self, raw: bytes) -> bytes:
        if not raw.startswith(b"data: ") or raw.startswith(DONE):
            return raw + b"\n\n"
        row = json.loads(raw[6:])
        if "choices" not in row:  # an error of the model's
            return raw + b"\n\n"
        choices = [kept for choice in row["choices"] if (kept := self._choice(choice)) is not None]
        made = event(row | {"choices": choices}) if choices or not row["choices"] else b""
        begun = self._choices
        if len(begun) >= self._count and all(one.blocked for one in begun.values()) and self._closed >= begun.keys():
            self.over = True
            made += DONE + b"\n\n"
        return made

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """The choice with as much of its text as may go out; None where there is nothing to say."""
        index = choice["index"]
        if index in self._closed:
            return None
        stream = self._choices.setdefault(index, StreamGuard(self._guard, self._before(index), self._asks, self._context))
        text, finish = stream.feed(said(choice)), choice.get("finish_reason")
        if finish is not None and not stream.blocked:
            text += stream.end()
            if not stream.blocked:
                text += self._warning
        if stream.blocked:
            assert stream.decision is not None
            text += f"\n\n{stream.decision.message}" if stream.begun else stream.decision.message
            finish = "content_filter"
        if finish is not None:
            self._closed.add(index)
            assert stream.decision is not None
            self._record.decisions.append(stream.decision)
            self._record.below[index] = "" if stream.blocked else stream.decision.below + self._warning
        elif not text and "role" not in (choice.get("delta") or {}):
            return None
        return {**saying(choice, text), "finish_reason": finish}
