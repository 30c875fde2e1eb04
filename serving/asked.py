"""What of a request the model reads: every text in it comes from the client, so all of it is what is asked.

A client writes the answers of earlier turns, system messages, tool calls and descriptions of tools as freely as a question. So they are
held to the policy too, on their own line each, and what is to be redacted is replaced in each of them. Names (of tools, arguments and
fields) cannot be replaced: what is to be redacted there makes the request an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from ..envs.types import message_from_dict
from ..guardrails.guard import parted, redacted
from ..guardrails.leaves import Piece, leaves
from ..guardrails.policy import Policy
from ..guardrails.types import Finding
from ..guardrails.verdict import ASKED_BY, context_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A request taken apart. request: a copy, in which `place` of every piece lies; tool calls' arguments are objects there.

    Example: `Asked.of({"messages": [{"role": "user", "content": "Hello"}]}).texts() == ["Hello"]`.
    """

    request: dict[str, Any]
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Asked:
        """Raises ValueError on messages or tools that are none. The prompts of a completion request are texts."""
        if "prompt" in request:
            return cls._of_prompts(request)
        rows, tools = request.get("messages"), request.get("tools") or []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("messages must be a list of messages")
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError("tools must be a list of functions")
        copy = {**request, "messages": deepcopy(rows), **({"tools": deepcopy(tools)} if tools else {})}
        pieces = list[Piece]()
        for i, row in enumerate(copy["messages"]):
            pieces += _of_message(row, f"messages[{i}]")
        for tool in copy.get("tools") or ():
            pieces += leaves(tool)
        return cls(copy, tuple(piece for piece in pieces if piece.text))

    @classmethod
    def _of_prompts(cls, request: Mapping[str, Any]) -> Asked:
        copy = deepcopy(dict(request))
        prompts = copy["prompt"]
        places: list[tuple[Any, int | str]] = (
            [(copy, "prompt")] if isinstance(prompts, str) else [(prompts, i) for i in range(len(prompts))]
        )
        return cls(copy, tuple(Piece(holder[key], (holder, key), said=True) for holder, key in places))

    def texts(self) -> list[str]:
        """What is looked at: what users and tools say, and all there is where that is more; what is split over either is found."""
        said, whole = ("\n".join(piece.text for piece in pieces) for pieces in (self._said, self.pieces))
        return list(dict.fromkeys(text for text in (said, whole) if text))

    def without(self, findings: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
        """The request with what is to be redacted replaced in each piece; a finding that spans two is replaced in both.

        findings: of each of `texts()`. Raises ValueError when one is in a name.
        """
        found: dict[int, list[Finding]] = {}
        for pieces in (self._said, self.pieces):
            inside = findings.get("\n".join(piece.text for piece in pieces), ())
            ends = list(accumulate((len(piece.text) + 1 for piece in pieces), initial=0))  # a line's end between two
            for piece, own in zip(pieces, parted(inside, ((at, end - 1) for at, end in pairwise(ends))), strict=True):
                found.setdefault(id(piece), []).extend(own)
        for piece in self.pieces:
            text = redacted(piece.text, found[id(piece)])
            if text == piece.text:
                continue
            if piece.place is None:
                raise ValueError(f"the guardrail policy redacts a part of the name {piece.text[:60]!r}, and names cannot be changed")
            owner, key = piece.place
            owner[key] = text
        for row in self.request.get("messages", ()):
            for call in row.get("tool_calls") or ():
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return self.request

    @property
    def _said(self) -> tuple[Piece, ...]:
        return tuple(piece for piece in self.pieces if piece.said)


def _of_message(row: dict[str, Any], where: str) -> Iterator[Piece]:
    message = message_from_dict(row, where)
    yield Piece(message.text, (row, "content"), message.role in ASKED_BY)
    yield from (Piece(name, None) for name in (message.name, message.tool_call_id) if name)
    for call, read in zip(row.get("tool_calls") or (), message.tool_calls, strict=True):
        call["function"]["arguments"] = dict(read.arguments)
        yield from (Piece(name, None) for name in (read.id, read.name))
        yield from leaves(call["function"]["arguments"])


def may_call(request: Mapping[str, Any]) -> bool:
    """Whether calls in the answer come apart from what it says: it was given tools, and not `tool_choice` "none"."""
    return bool(request.get("tools")) and request.get("tool_choice") != "none"


def context_asked(policy: Policy, request: Mapping[str, Any]) -> str | None:
    """What the answers to a request must follow from, by the policy; of a completion's prompt nobody knows what it is."""
    if policy.grounding is None or "messages" not in request:
        return None
    return context_of(policy, (message_from_dict(row, "messages") for row in request["messages"]))
