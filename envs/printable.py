"""Text made fit for eyes: what would steer a terminal or hide in a page is shown as an escape instead."""

from __future__ import annotations

import json
import unicodedata
from functools import lru_cache
from typing import Any

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (direction overrides), lone surrogates, line and paragraph separators
KEPT = "\n\t\u200c\u200d"  # the two joiners are part of ordinary scripts and emoji


def printable(text: str) -> str:
    """`text` with every control, direction-changing and unpaired character written as \\x1b, \\u202e and so on.

    Line feed and tab stay. Example: `printable("\\x1b[31mred") == "\\\\x1b[31mred"`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def printable_json(value: Any, indent: int | None = None) -> str:
    """JSON in which what `printable` shows as an escape is one of JSON's, and every other character is itself: whatever it
    holds, it steers no terminal, can be encoded, and says the same. Raises ValueError for a number that is not finite.

    Example: `printable_json({"said": "für \\x9b"}) == '{"said": "für \\\\u009b"}'`.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if _shown(one) == one else json.dumps(one)[1:-1] for one in text)


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    if character in KEPT or unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
