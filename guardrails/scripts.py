"""Which writing a text is in: languages by their scripts, letters by theirs."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

LATIN = ("cs", "da", "de", "en", "es", "fi", "fr", "id", "it", "nl", "no", "pl", "pt", "ro", "sv", "tr")
SCRIPTS_OF: dict[str, frozenset[str]] = {
    **dict.fromkeys(LATIN, frozenset({"LATIN"})),
    **dict.fromkeys(("bg", "ru", "sr", "uk"), frozenset({"CYRILLIC"})),
    "ar": frozenset({"ARABIC"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "ja": frozenset({"HIRAGANA", "KATAKANA", "CJK"}),
    "ko": frozenset({"HANGUL", "CJK"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK"}),
}
"""By language, the first words of the Unicode names of its letters."""

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "HANGUL")
"""Scripts in which words stand without a space or carry endings, so that a word may be found inside of others."""


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """The first word of a letter's Unicode name, "" for what is no letter. Example: `script_of("ж")` is "CYRILLIC"."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "")
    return "KATAKANA" if "KATAKANA" in name else name.partition(" ")[0]


def scripts(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    return Counter({"LATIN": sum(map(str.isalpha, text))}) if text.isascii() else Counter(s for s in map(script_of, text) if s)


def languages_of(text: str) -> tuple[str, ...]:
    """The known languages whose scripts hold the most letters of a text; of equal ones, those that are written in the fewest scripts.

    Several share a script, and are not told apart. Empty for a text without a letter of any of them.

    Example: `languages_of("Где заказ?")` is `("bg", "ru", "sr", "uk")`.
    """
    counts = scripts(text)
    held = {code: sum(counts[script] for script in used) for code, used in SCRIPTS_OF.items()}
    most = max(held.values())
    if not most:
        return ()
    fitting = [code for code, count in held.items() if count == most]
    fewest = min(len(SCRIPTS_OF[code]) for code in fitting)
    return tuple(sorted(code for code in fitting if len(SCRIPTS_OF[code]) == fewest))


def is_unspaced(text: str) -> bool:
    """Whether a word has a letter of a script without spaces."""
    return any(script_of(letter) in UNSPACED for letter in text)
