"""The texts in plain JSON, such as the arguments of a tool call: each is looked at as a text of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..rpc.payload import deeper_than
from .numbers import digits

MAX_DEPTH = 64
FORM = frozenset({
    "type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "title", "default", "strict",
    "additionalProperties", "object", "string", "number", "integer", "boolean", "array", "null",
})  # fmt: skip
"""Words that say how a tool is described, and nothing else."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of a request. place: where it stands, None where it cannot be replaced. said: by a user or a tool."""

    text: str
    place: tuple[Any, int | str] | None
    said: bool = False


def leaves(value: Any) -> Iterator[Piece]:
    """Every text and number in plain JSON, the names of its fields included."""
    if deeper_than(value, MAX_DEPTH):
        raise ValueError(f"tools and the arguments of their calls may be nested {MAX_DEPTH} levels deep at most")
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        for key, one in list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder)):
            if isinstance(key, str) and key not in FORM:
                yield Piece(key, None)
            if isinstance(one, str):
                if one not in FORM:
                    yield Piece(one, (holder, key))
            elif isinstance(one, dict | list):
                waiting.append(one)
            elif isinstance(one, int | float) and not isinstance(one, bool):  # a card's number is one without its quotes too
                yield Piece(digits(one), (holder, key))
