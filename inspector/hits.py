"""Where in a conversation the words of a search stand."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from ..envs.types import Message
from .terminal import call_text
from .text import printable

AROUND = 60
"""Characters that are shown on either side of a hit."""
MARKS = 1000
"""Hits that are marked in one text: a browser is slow with many more, and nobody looks at them one by one."""


def is_short(word: str) -> bool:
    """Whether a word is part of too many others to be looked for in them."""
    return len(word) < 3 and word.isascii()


def marked(text: str, words: Sequence[str]) -> Markup:
    """A text to be shown, each word of a search marked in it, as part of a longer word too unless it is short. Of very many hits the first
    `MARKS` are marked, and that is said at the end.

    Example: `marked("a <b> Bore", ["bor"]) == "a &lt;b&gt; <mark>Bor</mark>e"`.
    """
    if not words:
        return escape(printable(text))
    pieces = _pattern(words).split(text, maxsplit=MARKS + 1)
    more = len(pieces) > 2 * MARKS + 1
    if more:
        pieces[2 * MARKS :] = ["".join(pieces[2 * MARKS :])]
    shown = [str(escape(printable(piece))) for piece in pieces]
    shown[1::2] = [f"<mark>{piece}</mark>" for piece in shown[1::2]]
    if more:
        shown.append(f"\n<small>Of more hits, the first {MARKS:,} are marked.</small>")
    return Markup("".join(shown))  # each piece is escaped above


def first_hit(chat: Sequence[Message], words: Sequence[str]) -> int | None:
    """The number of the first message that says one of some words, from 0; None where none does."""
    return next((i for i, message in enumerate(chat) if _found(message, words)), None) if words else None


def around_first(chat: Sequence[Message], words: Sequence[str]) -> str:
    """What stands around the first of some words, in one line; "" where none is said. Example: `"…then measure the bore of it…"`."""
    number = first_hit(chat, words)
    if number is None:
        return ""
    text, hit = next((said, found) for said in _texts(chat[number]) if (found := _pattern(words).search(said)))
    begin, end = max(0, hit.start() - AROUND), hit.end() + AROUND
    return f"{'…' if begin else ''}{' '.join(text[begin:end].split())}{'…' if end < len(text) else ''}"


def _found(message: Message, words: Sequence[str]) -> bool:
    pattern = _pattern(words)
    return any(pattern.search(text) for text in _texts(message))


def _texts(message: Message) -> list[str]:
    """What is shown of a message."""
    return [message.text, *map(call_text, message.tool_calls), message.name or ""]


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Any of some words, the longest first."""
    each = [rf"(?<!\w){re.escape(word)}(?!\w)" if is_short(word) else re.escape(word) for word in sorted(words, key=len, reverse=True)]
    return re.compile(f"({'|'.join(each)})", re.IGNORECASE)
