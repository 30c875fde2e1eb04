"""Regular expressions that cannot hang: RE2 looks for a match in time in proportion to the text, whatever the expression (Cox, 2010).

To find all of them is to look once for each, and where an expression has to read on to know that a longer match is none
(`<script.*</script>|on\\w+=`), each look may read what is left of the text. So what is left is counted, and a text is refused that has too
many matches for its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from ..rpc.extras import require
from .scripts import is_unspaced
from .unreadable import UnreadableText

MAX_MEMORY = 8 * 2**20
MOST_READ: Final = 2 << 30
"""Bytes that all looks for one expression in one text may read, a gigabyte a second: of 64 KB any number, of a megabyte 4,000 of them."""
_READS_ON = re.compile(r"[*+]|,\}")
"""In expressions that may read any number of characters after a match. Those of words have to stop at the next letter that does not fit."""


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

    group: 1 for `words_expression`. Raises ValueError on a text that UTF-8 cannot hold, and on one with too many matches (`MOST_READ`).
    """
    encoded = text.encode()  # once: given a str, every search would encode all of it again
    reads_on = group == 0 and _READS_ON.search(expression.pattern) is not None
    at = counted = letters = read = 0
    while at <= len(encoded) and (match := expression.search(encoded, at)) is not None:
        start, end = match.span(group)
        read += len(encoded) - end if reads_on else 0
        if read > MOST_READ:
            raise UnreadableText(f"a text of {len(text)} characters has too many matches of {expression.pattern!r:.80} to be looked at")
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
