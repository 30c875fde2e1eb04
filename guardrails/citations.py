"""Whether what an answer cites is there, and says what it is cited for: `[2]`, or words in quotation marks.

As in `factuality`, all of it is computed from words and numbers here: support is lexical.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .factuality import SUPPORT, known_words, statements, support

SHORTEST_QUOTE = 3
"""Words between quotation marks that quote something; fewer are a term."""
MOST_QUOTES = 200
"""Quotes of an answer that are looked for; any further one counts as not found."""

_NUMBERS = r"\[(\d{1,4}(?:[ \t]*[,;][ \t]*\d{1,4})*)\]"
_CITED = re.compile(_NUMBERS)
_BEHIND = re.compile(rf"(?<![.!?。！？])([.!?。！？]+[\"”“»)]*)((?:[ \t]*{_NUMBERS})+)")
_QUOTE = re.compile(r"[\"“„«]([^\"“”„«»\n]{1,2000})[\"”“»]")


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence of an answer that claims something.

    cited: whether it cites. unknown: numbers in it that no passage has. misquoted: quotes in it that do not stand where it says. score: the
    share of its words that the passages which it cites have, 0 when it has a number that they have not.
    """

    text: str
    cited: bool
    unknown: tuple[int, ...]
    misquoted: tuple[str, ...]
    score: float

    @property
    def holds(self) -> bool:
        """Whether it cites what is there and supports it."""
        return self.cited and not self.unknown and not self.misquoted and self.score >= SUPPORT


@dataclass(frozen=True, slots=True)
class _Quote:
    """Words in quotation marks. passages: those that have them, counted from 0."""

    start: int
    end: int
    text: str
    passages: tuple[int, ...]


def cited_statements(answer: str, passages: Sequence[str]) -> list[Statement]:
    """What each sentence of an answer claims and cites. `[n]` is the nth passage, in the sentence or right behind its full stop.

    Example: of "The bore is 12 mm [1]. It is steel [2]." the passages "bore: 12 mm" and "made of brass" support the first alone.
    """
    text = _BEHIND.sub(r"\2\1", answer)
    known = [known_words(passage) for passage in passages]
    quotes = list(_quotes(text, passages))
    ends = [quote.end for quote in quotes]
    bare = _CITED.sub(lambda found: " " * len(found[0]), text)  # a citation is no number of the claim
    made = []
    for start, end, words in statements(bare):
        numbers = [int(number) for found in _CITED.finditer(text, start, end) for number in re.findall(r"\d+", found[1])]
        inside = list(_reaching(quotes, bisect_left(ends, start + 1), end))
        there = {number - 1 for number in numbers if 0 < number <= len(passages)}
        among = there or {at for quote in inside for at in quote.passages}
        unknown = tuple(number for number in numbers if number - 1 not in there)
        misquoted = tuple(quote.text for quote in inside if not among & set(quote.passages))
        score = support(words, [known[at] for at in sorted(among)])
        made.append(Statement(text[start:end].strip(), bool(numbers or inside), unknown, misquoted, score))
    return made


def _reaching(quotes: Sequence[_Quote], first: int, end: int) -> Iterator[_Quote]:
    for quote in quotes[first:]:
        if quote.start >= end:
            return
        yield quote


def _quotes(text: str, passages: Sequence[str]) -> Iterator[_Quote]:
    folded, looked_for = [_folded(passage) for passage in passages], 0
    for found in _QUOTE.finditer(text):
        words = _folded(_CITED.sub(" ", found[1])).strip(" .,;:!?")
        if len(words.split()) < SHORTEST_QUOTE:
            continue
        looked_for += 1
        there = tuple(at for at, passage in enumerate(folded) if words in passage) if looked_for <= MOST_QUOTES else ()
        yield _Quote(found.start(), found.end(), found[1], there)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
