"""Which lines of a text hold its tool calls: what stands around them is said beside the calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from .tool_calls import ToolParser
from .types import ToolCall


def call_lines(text: str, found: Sequence[ToolCall], parser: ToolParser, tools: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The characters of `text` from the line in which the first of the calls `found` begins to the end of that in which the last ends.

    The text is halved until they are found: reading it takes the longer the longer it is, and it may have as many lines as characters.

    Example: of `'Let me see.\\nmeasure(17, "bore")'` they are 12 and 31.
    """
    cuts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    begin = cuts[_last(len(cuts) - 1, lambda i: _same(parser(text[cuts[i] :], tools), found))]
    ends = [cut for cut in reversed(cuts) if cut > begin]
    return begin, ends[_last(len(ends), lambda i: _same(parser(text[begin : ends[i]], tools), found))]


def _last(count: int, reads: Callable[[int], bool]) -> int:
    """The last of so many places, the first of which is one, that still reads; whatever reads, those before it do."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reads(middle) else (low, middle)
    return low


def _same(again: object, found: Sequence[ToolCall]) -> bool:
    if not isinstance(again, tuple) or len(again) != len(found):
        return False
    return all((a.name, dict(a.arguments)) == (b.name, dict(b.arguments)) for a, b in zip(again, found, strict=True))
