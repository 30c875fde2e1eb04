"""Model text made fit for eyes: what would steer a terminal or hide in a page is shown as an escape instead."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
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


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    if character in KEPT or unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float) -> str:
    """A number with four significant digits at most. Examples: 0.8125 -> "0.8125", 12345.6 -> "12,346", 0.0000512 -> "5.12e-05"."""
    if value == 0:
        return "0"
    size = abs(value)
    if 1000 <= size < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size < 0.001 or size >= 1e15 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with one decimal. Example: 0.8125 -> "81.2 %"."""
    return f"{100 * share:.1f} %"


def finite(value: Any) -> Any:
    """Data as JSON takes it: numbers that are not finite, for which it has no word, are null. Example: `finite([math.inf]) == [None]`."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
