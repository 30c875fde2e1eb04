"""Text, numbers and data made fit for eyes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..envs.printable import printable, printable_json

__all__ = ["cut", "finite", "number", "percent", "printable", "printable_json", "short"]

SHORT = 200
"""Letters of a name in a table: a store may come from anywhere."""


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


def cut(text: str, most: int) -> str:
    """A text of at most so many letters. Example: `cut("warned", 4) == "war…"`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short(name: str) -> str:
    """A name as tables show it: cut to `SHORT` letters."""
    return cut(name, SHORT)


def finite(value: Any) -> Any:
    """Data as JSON takes it: numbers that are not finite, for which it has no word, are null. Example: `finite([math.inf]) == [None]`."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
