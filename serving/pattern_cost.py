"""What the patterns, lengths and formats of a JSON schema cost where a grammar is made of them, before one is made.

A grammar has each repetition written out, and its making takes the longer the more of what is written out may be left out or be something
else: with xgrammar 0.2.8 a second for 60 such choices in nested repetitions, minutes for 120. So choices are counted: `?`, `*`, `+` and
each `|` are one, `{m,n}` has `n - m` of its own, and those inside of it `n` times. A length of a thousand takes a second, and a longer one
no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

MOST_CHOICES: Final = 64
"""Of all patterns of a schema together."""
MOST_WRITTEN: Final = 1024
"""Characters and classes, each repetition written out."""

MOST_LENGTH: Final = 4096
"""Of all texts of a schema whose length it bounds, together; a longer one than `LONG` counts as that, and a format as `FORMAT`."""
LONG: Final = 1024
FORMAT: Final = 64
MOST_PROPERTIES: Final = 256
"""Of one object: the time goes with their square."""

_SIGN: Final = (
    r"(?P<repeat>[?*+]\??|\{(?P<least>\d{1,9})(?P<comma>,(?P<most>\d{0,9}))?\}\??)"
    r"|(?P<open>\((?:\?(?:[:=!>]|<[=!]|P?<\w{1,64}>))?)|(?P<close>\))|(?P<other>\|)"
)
_PIECE: Final = re.compile(_SIGN + r"|\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|.", re.DOTALL)
_BEHIND: Final = re.compile(_SIGN + r"|\\.|.", re.DOTALL)
"""What is read behind the last bracket that may close a class: each that is opened there would be followed to the end of the pattern."""
_ESCAPED_OR_CLOSING: Final = re.compile(r"\\.|\]", re.DOTALL)


def pattern_cost(pattern: str) -> tuple[int, int]:
    """Choices and characters of a pattern with its repetitions written out.

    Example: `pattern_cost("[a-z]{1,5}-?") == (5, 6)`.
    """
    open_groups = [[0, 0]]  # choices and characters so far
    last = (0, 0)
    for piece in _pieces(pattern):
        if piece["repeat"]:
            choices, written = _repeated(piece, *last)
            open_groups[-1][0] += choices - last[0]
            open_groups[-1][1] += written - last[1]
            last = (choices, written)
        elif piece["open"]:
            open_groups.append([0, 0])
            last = (0, 0)
        else:
            last = (0, 1)
            if piece["close"] and len(open_groups) > 1:
                choices, written = open_groups.pop()
                last = (choices, written)
            elif piece["other"]:
                last = (1, 0)
            open_groups[-1][0] += last[0]
            open_groups[-1][1] += last[1]
    return sum(choices for choices, _ in open_groups), sum(written for _, written in open_groups)


def too_costly(schema: Any) -> str:
    """What of a schema would cost more than an answer, in a sentence; "" where nothing does."""
    choices = written = length = 0
    for one in _tables(schema):
        named = one.get("patternProperties")
        for pattern in (one.get("pattern"), *(named if isinstance(named, Mapping) else ())):
            own = pattern_cost(pattern) if isinstance(pattern, str) else (0, 0)
            choices, written = choices + own[0], written + own[1]
        length += max(_length(one.get("minLength")), _length(one.get("maxLength")), FORMAT * isinstance(one.get("format"), str))
        properties = one.get("properties")
        if isinstance(properties, Mapping) and len(properties) > MOST_PROPERTIES:
            return f"an object of a schema may have {MOST_PROPERTIES} properties, not {len(properties)}"
    if choices > MOST_CHOICES or written > MOST_WRITTEN:
        said = f"the patterns of a schema may have {MOST_CHOICES} choices and {MOST_WRITTEN:,} characters, their repetitions written out"
        return f"{said} ({{1,5}} is five times what stands before it, and in another such one 25 times); these have {choices} and {written}"
    if length > MOST_LENGTH:
        return f"minLength and maxLength of a schema may come to {MOST_LENGTH:,} together, a format being {FORMAT}, and not to {length:,}"
    return ""


def _pieces(pattern: str) -> Iterator[re.Match[str]]:
    """In time that grows with the pattern, whatever it is."""
    last = max((found.end() for found in _ESCAPED_OR_CLOSING.finditer(pattern) if found[0] == "]"), default=0)
    yield from _PIECE.finditer(pattern, 0, last)
    yield from _BEHIND.finditer(pattern, last)


def _repeated(piece: re.Match[str], choices: int, written: int) -> tuple[int, int]:
    if piece["least"] is None:
        return choices + 1, written
    least = int(piece["least"])
    most = least if piece["comma"] is None else int(piece["most"] or least + 1)
    times = max(least, most, 1)
    return min(choices * times + abs(most - least), 10**9), min(written * times, 10**9)


def _length(value: Any) -> int:
    return int(max(0, min(value, LONG))) if isinstance(value, int | float) else 0


def _tables(schema: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, Mapping):
            yield one
            waiting += one.values()
