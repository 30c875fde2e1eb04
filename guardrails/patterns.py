"""Regular expressions that cannot hang: RE2 takes time in proportion to the text, whatever the expression (Cox, 2010)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from ..rpc.extras import require
from .scripts import is_unspaced

MAX_MEMORY = 8 * 2**20


@lru_cache(maxsize=4096)
def compiled(pattern: str, ignore_case: bool = True, over_lines: bool = False) -> Any:
    """The expression of RE2. over_lines: `.` is a line's end too, so that one does not hide what comes behind it.

    Raises ValueError saying what of it RE2 does not take.
    """
    require("a guardrail policy", ["re2"], "guard")
    import re2

    options = re2.Options()
    options.case_sensitive, options.max_mem, options.log_errors = not ignore_case, MAX_MEMORY, False
    options.dot_nl = over_lines
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"{pattern!r:.80} is no expression of RE2: {said}") from None


def spans(expression: Any, text: str, group: int = 0) -> Iterator[tuple[int, int]]:
    """Where an expression matches, in order and without overlap, every time: what was left out would pass. Empty matches are none.

    Raises ValueError on a text that UTF-8 cannot hold.
    """
    encoded = text.encode()  # once: given a str, every search would encode all of it again
    at = counted = letters = 0
    while at <= len(encoded) and (match := expression.search(encoded, at)) is not None:
        start, end = match.span(group)
        if end > start:
            first = letters + len(encoded[counted:start].decode())
            letters, counted = first + len(encoded[start:end].decode()), end
            yield first, letters
        at = max(end, at + 1)
        while at < len(encoded) and encoded[at] & 0xC0 == 0x80:  # within a character
            at += 1


def words_expression(words: tuple[str, ...]) -> tuple[Any, ...]:
    """Expressions whose group 1 is one of the words, whole; in scripts without spaces, wherever it stands. `*` at the end: any ending.
    Between the words of a phrase may stand nothing, and whatever is no letter, mark or digit."""
    spaced = [word for word in words if not is_unspaced(word)]
    unspaced = [word for word in words if is_unspaced(word)]
    made = []
    if spaced:
        made.append(compiled(rf"(?:^|[^\pL\pN])({'|'.join(map(_word, sorted(spaced, key=len, reverse=True)))})(?:$|[^\pL\pN])"))
    if unspaced:
        made.append(compiled(f"({'|'.join(map(_word, sorted(unspaced, key=len, reverse=True)))})"))
    return tuple(made)


def _word(word: str) -> str:
    require("a guardrail policy", ["re2"], "guard")
    import re2

    stem = word.strip().removesuffix("*")
    parts = [re2.escape(part) for part in stem.split()]
    return r"[^\pL\pM\pN]*".join(parts) + (r"[\pL\pN]*" if word.strip().endswith("*") else "")
