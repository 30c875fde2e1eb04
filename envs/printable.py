"""Text made fit for eyes: what would steer a terminal or hide in a page is shown as an escape instead."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (direction overrides), lone surrogates, line and paragraph separators
KEPT = "\n\t\u200c\u200d"  # the two joiners are part of ordinary scripts and emoji


def printable(text: str) -> str:
    """`text` with every control, direction-changing and unpaired character written as \\x1b, \\u202e and so on.

    Line feed and tab stay. Example: `printable("\\x1b[31mred") == "\\\\x1b[31mred"`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    if character in KEPT or unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
