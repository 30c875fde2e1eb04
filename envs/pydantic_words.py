"""What pydantic says is wrong, without what is only pydantic's: its prefixes, links and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

PREFIXES = ("Value error, ", "Assertion failed, ")


def message_of(detail: Mapping[str, Any]) -> str:
    """Of one of `ValidationError.errors()`. Example: "Value error, is too long" as "is too long"."""
    said = str(detail["msg"])
    return next((said.removeprefix(prefix) for prefix in PREFIXES if said.startswith(prefix)), said)


def first_error(error: ValidationError) -> str:
    """The first complaint on one line, with its place. Example: `turns.0.tokens: Field required`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {message_of(first)}" if place else message_of(first)
