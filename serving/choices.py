"""The text of a choice, wherever the kinds of answers have it: a chat's message, a piece of its stream, or a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def said(choice: Mapping[str, Any]) -> str:
    """What a choice says. Example: `said({"delta": {"content": "It"}}) == said({"text": "It"}) == "It"`."""
    for part in ("message", "delta"):
        if part in choice:
            return (choice[part] or {}).get("content") or ""
    return choice.get("text") or ""


def saying(choice: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The choice with another text in its place."""
    for part in ("message", "delta"):
        if part in choice:
            return {**choice, part: {**(choice[part] or {}), "content": text}}
    return {**choice, "text": text}
