"""How a text can be read: what hides words from a filter is undone, and every character still knows where it came from.

Undone are Unicode's variants (NFKC), invisible characters and tags, accents, letters that look alike in other scripts, digits for letters,
letters with something between them, and base64, hexadecimal, percent, rot13 and reversed writing, HTML's entities, and the escapes by
which JSON and Python write characters in the arguments of tool calls, and numbers in other forms. What is decoded is hardly longer than
what it stands in for, but for a number.
"""

from __future__ import annotations

import base64
import codecs
import html
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from .numbers import NUMBER, rounded, written_shortly
from .registry import Reads
from .unreadable import UnreadableText

MAX_TEXT = 1_000_000
MAX_READ = 4 * MAX_TEXT
"""Characters of all readings of one text together."""
MAX_TURNED = 20_000
"""Characters of a text that is also read in rot13 and from its end."""
DEPTH = 2
"""An encoding within an encoding is decoded, and no deeper."""

_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOOKALIKES = dict(
    zip(
        "аеорсухіјѕԁһпкмтвАВЕКМНОРСТУХІЈЅαονρτυκιΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑɡǀⅼ",
        "aeopcyxijsdhnkmtbABEKMHOPCTYXIJSaovptukiABEZHIKMNOPTYXiagll",
        strict=True,
    )
)
"""Cyrillic, Greek and other letters that pass for Latin ones (from Unicode Technical Standard 39), small capitals, and letters in signs."""
LOOKALIKES |= dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True))
LOOKALIKES |= {chr(first + i): letter for first in (0x1F150, 0x1F170, 0x1F1E6) for i, letter in enumerate(_CAPITALS)}
MARKS = frozenset(map(chr, range(0x300, 0x370)))
"""Combining marks of Latin, Greek and Cyrillic: what NFKC leaves of them belongs to no letter of any language."""
IGNORED = frozenset(
    chr(code)
    for first, last in (
        (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F),
        (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    )
    for code in range(first, last + 1)
)  # fmt: skip
"""Unicode's Default_Ignorable_Code_Point: nothing is shown of them, whatever their category says."""
_TAGS = frozenset(map(chr, range(0xE0020, 0xE007F)))
"""Invisible doubles of ASCII."""
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
BLANK = "\u2800"
"""Braille without a dot: a space by its looks alone."""
LEET = dict(zip("0134578@$!|€", "oieastbasile", strict=True))

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]++(?:\s{1,4}+[A-Za-z0-9+/_-]++)*+")
_STANDARD64 = str.maketrans("-_", "+/")
_WORD64 = re.compile(r"[A-Za-z0-9+/_-]{6,}")
_PLAIN_WORD = re.compile(r"[A-Z]?[a-z]{1,23}|[A-Z]{1,23}|[0-9]{1,23}")
"""What is no base64 of a text but by a rare chance."""
_LOOSE_RUN = re.compile(rb"(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}){3,}")
_CONTROL = bytes(range(9)) + bytes(range(14, 32)) + b"\x0b\x0c\x7f"
_RUN = re.compile(rb"(?:[\t\n\r\x20-\x7e]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}){3,}")
"""Bytes that are text in UTF-8."""
LEAST_RUN, SURE_RUN = 8, 16
"""Characters of text in the midst of what is none that may be no chance, and bytes that are none."""
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){4,10000}")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});?")
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2}|[A-Za-z0-9_.~+-]){3,20000}")
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # one character of two halves
    r"|\\(?:u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{1,3}|N\{[A-Za-z0-9 -]{1,88}\}|\r\n|[\r\n\"'\\/abfnrtv])"
)
_ESCAPED = {"\r": "", "\n": "", "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
"""What a letter behind a backslash stands for; a line's end stands for nothing, and others for themselves."""
_SPACED = re.compile(
    r"(?<!\w)\w(?:[\s.\-_*,;/|+~·•]\w){2,200}(?!\w)"  # one letter and one gap after the other: nothing to go back over
    r"|(?<!\w)\w(\W{2,4})\w(?:\1\w){1,200}(?!\w)"  # wider gaps are all the same: those between words differ
)
_TOKEN = re.compile(r"[\w@$!|€]{2,64}")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """a an and are at be build can create do explain for from get give how i in is it make me my need of on or please show tell that
        the this to use want with you your what write das der die ein eine für ich ist man mir mit nicht und wie zu zum""",
    )
)
"""Words that tell a language from a jumble of letters."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a text. at: for each character, the span of the original text that it stands for; None where they are the same."""

    name: str
    kind: Reads
    text: str
    at: tuple[tuple[int, int], ...] | None = None

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original text that characters start to end of this reading stand for."""
        if self.at is None:
            return start, end
        covered = self.at[start:end] or self.at[-1:]
        return min(start for start, _ in covered), max(stop for _, stop in covered)  # a reversed text descends


def check_length(text: str) -> None:
    """Raises UnreadableText when a text has more than a million characters."""
    if len(text) > MAX_TEXT:
        raise UnreadableText(f"a text of {len(text)} characters is too long to be looked at; at most {MAX_TEXT}")


def readings(text: str) -> Iterator[Reading]:
    """Every reading that says something else than the ones before it, the plain one first.

    Raises ValueError beyond a million characters, and where the readings together have more than `MAX_READ`.
    """
    check_length(text)
    seen, read = set[str](), 0
    for reading in _ways(text):
        read += len(reading.text)
        if read > MAX_READ:
            raise _too_many(text)
        if reading.text not in seen and (reading.text or not seen):
            seen.add(reading.text)
            yield reading


def _too_many(text: str) -> UnreadableText:
    return UnreadableText(f"a text of {len(text)} characters can be read in too many ways to be looked at; at most {MAX_READ} in all")


def _ways(text: str) -> Iterator[Reading]:
    plain = _plain(text)
    yield plain
    yield from _others(plain, DEPTH)
    if plain.at is None:  # nothing is hidden
        return
    apart = _plain(text, _apart, "apart", "folded")  # what is not seen may part words too
    if apart.text != plain.text:
        yield apart
        yield from _others(apart, DEPTH)
    if not _TAGS.isdisjoint(text):
        tags = _plain(text.translate({ord(tag): ord(tag) - 0xE0000 for tag in _TAGS}), name="tags", kind="decoded")
        yield tags
        yield from _others(tags, DEPTH)


def _others(reading: Reading, depth: int) -> Iterator[Reading]:
    yield from _folded(reading)
    if depth:
        for decoded in _decoded(reading):
            yield decoded
            yield from _others(decoded, depth - 1)


def _plain(text: str, said: Callable[[str], str] | None = None, name: str = "plain", kind: Reads = "plain") -> Reading:
    """NFKC, without what cannot be seen. A character and the marks that follow it are one piece, so that they can be put together.

    said: what is written for a character. Raises ValueError beyond `MAX_READ` characters: one ligature can be a whole phrase.
    """
    if text.isascii() and not _UNSEEN.search(text):
        return Reading(name, kind, text)
    made, at, start = list[str](), list[tuple[int, int]](), 0
    while start < len(text):
        end = start + 1
        while end < len(text) and (unicodedata.combining(text[end]) or text[end] in "ﾞﾟ") and end - start < 32:
            end += 1
        made.append("".join(map(said or _seen, unicodedata.normalize("NFKC", text[start:end]))))
        at += [(start, end)] * len(made[-1])
        if len(at) > MAX_READ:
            raise _too_many(text)
        start = end
    new = "".join(made)
    return Reading(name, kind, text) if new == text else Reading(name, kind, new, tuple(at))


@lru_cache(maxsize=16384)
def _seen(letter: str) -> str:
    """What is seen of a character: a space of every kind of gap, nothing of what is not shown."""
    kind = unicodedata.category(letter)
    if letter in "\n\t\r":
        return letter
    if letter == BLANK or kind[0] == "Z":
        return " "
    return "" if kind in ("Cf", "Cc") or letter in IGNORED or letter in MARKS else letter


def _apart(letter: str) -> str:
    seen = _seen(letter)
    return seen if seen or letter in MARKS else " "


@lru_cache(maxsize=16384)
def _bare(letter: str) -> str:
    """A letter without accents and what else is drawn on it."""
    parts = unicodedata.normalize("NFD", letter)
    return unicodedata.normalize("NFC", "".join(one for one in parts if unicodedata.category(one) not in ("Mn", "Me")))


def _folded(reading: Reading) -> Iterator[Reading]:
    """Letters that look like others, letters without accents, digits for letters, letters with something between them."""
    name = "" if reading.name == "plain" else f"{reading.name}+"
    ways, looks = [reading], reading
    if not reading.text.isascii():
        looks = _each(reading, f"{name}lookalikes", lambda letter: LOOKALIKES.get(letter, letter))
        bare = _each(looks, f"{name}bare", _bare)
        ways = list({one.text: one for one in (bare, looks, reading)}.values())[::-1]  # the first of those that say the same
        yield from (one for one in ways if one is not reading)
        looks = bare
    joined = _joined(looks, f"{name}spaced")
    if joined is not None:
        yield joined
    forms = ways[1:] or ways
    for one in forms if joined is None else (*forms, joined):
        leet = _TOKEN.sub(_unleet, one.text)
        if leet != one.text:
            assert len(leet) == len(one.text)
            yield Reading(f"{name}leet", "folded", leet, one.at)


def _each(reading: Reading, name: str, said: Callable[[str], str]) -> Reading:
    """The reading with something else in the place of each character."""
    made = [said(letter) for letter in reading.text]
    at = reading.at
    if any(len(one) != 1 for one in made):
        at = tuple(span for i, one in enumerate(made) for span in [reading.origin(i, i + 1)] * len(one))
    return Reading(name, "folded", "".join(made), at)


def _unleet(token: re.Match[str]) -> str:
    """Digits and signs as letters, in words that have letters too, so that numbers stay numbers."""
    word = token[0]
    return "".join(LEET.get(letter, letter) for letter in word) if any(map(str.isalpha, word)) else word


def _joined(reading: Reading, name: str) -> Reading | None:
    """`k i l l` and `k.i.l.l` as one word."""
    made, at, done = list[str](), list[tuple[int, int]](), 0
    for spaced in _SPACED.finditer(reading.text):
        letters = [i for i in range(spaced.start(), spaced.end()) if reading.text[i].isalnum()]
        kept = [*range(done, spaced.start()), *letters]
        made += [reading.text[i] for i in kept]
        at += [reading.origin(i, i + 1) for i in kept]
        done = spaced.end()
    if not done:
        return None
    made.append(reading.text[done:])
    at += [reading.origin(i, i + 1) for i in range(done, len(reading.text))]
    return Reading(name, "folded", "".join(made), tuple(at))


def _decoded(reading: Reading) -> Iterator[Reading]:
    """The text with what is encoded in it decoded, one reading for each encoding that it has."""
    prefix = "" if reading.name == "plain" else f"{reading.name}+"
    text = reading.text
    for name, found in (
        ("base64", (one for stretch in _BASE64.finditer(text) for one in _in_base64(stretch))),
        ("hex", _decoding(text, _HEX, lambda said: _printable(_from_hex(said)))),
        ("percent", _decoding(text, _PERCENT, lambda said: _printable(_from_percent(said))) if text.count("%") >= 3 else ()),
        ("entities", _decoding(text, _ENTITY, html.unescape) if "&" in text else ()),
        ("escapes", _decoding(text, _ESCAPE, _from_escape) if "\\" in text else ()),
        ("numbers", _decoding(text, NUMBER, written_shortly)),
        ("floats", _decoding(text, NUMBER, rounded)),
    ):
        decoded = _replaced(reading, f"{prefix}{name}", found)
        if decoded is not None:
            yield decoded
    if len(text) <= MAX_TURNED and (words := _common(text)) < 3:
        turned = codecs.encode(text, "rot13")
        if _common(turned) > words:
            yield Reading(f"{prefix}rot13", "decoded", turned, reading.at)
        back = text[::-1]
        if _common(back) > words:
            yield Reading(f"{prefix}reversed", "decoded", back, tuple(reading.origin(i, i + 1) for i in range(len(text) - 1, -1, -1)))


def _decoding(text: str, pattern: re.Pattern[str], decode: Callable[[str], str | None]) -> Iterator[tuple[int, int, str]]:
    """Start, end and meaning of every stretch that decodes to another text."""
    for stretch in pattern.finditer(text):
        said = decode(stretch[0])
        if said is not None and said != stretch[0]:
            yield stretch.start(), stretch.end(), said


def _replaced(reading: Reading, name: str, found: Iterable[tuple[int, int, str]]) -> Reading | None:
    """The text with what stretches of it mean in their place; each of those characters stands for the whole stretch."""
    made, at, done = list[str](), list[tuple[int, int]](), 0
    for start, end, said in found:
        plain = _plain(said).text
        made += [reading.text[done:start], plain]
        at += [*(reading.origin(i, i + 1) for i in range(done, start)), *([reading.origin(start, end)] * len(plain))]
        done = end
    if not done:
        return None
    made.append(reading.text[done:])
    at += [reading.origin(i, i + 1) for i in range(done, len(reading.text))]
    return Reading(name, "decoded", "".join(made), tuple(at))


def _common(text: str) -> int:
    return sum(word in _COMMON for word in re.findall(r"\w+", text.lower()))


def _in_base64(stretch: re.Match[str]) -> list[tuple[int, int, str]]:
    """Start, end and meaning of what is text in a stretch of base64, wherever it begins and however it is broken into lines, in order.

    Each word is looked at by itself, where little is enough, and all of them together.
    """
    found = [
        one
        for word in _WORD64.finditer(stretch[0])
        for one in _texts(word[0], range(word.start(), word.end()), alone=True)
        if not _PLAIN_WORD.fullmatch(word[0])
    ]
    words = stretch[0].split()
    if len(words) > 1:
        found += _texts("".join(words), [i for i, letter in enumerate(stretch[0]) if not letter.isspace()], alone=False)
    taken: list[tuple[int, int, str]] = []
    for one in sorted(found, key=lambda one: one[0] - one[1]):  # the longest first
        i = bisect_left(taken, one)
        if (i == 0 or taken[i - 1][1] <= one[0]) and (i == len(taken) or one[1] <= taken[i][0]):
            taken.insert(i, one)
    return [_placed(stretch, *one) for one in taken]


def _placed(stretch: re.Match[str], start: int, end: int, said: str) -> tuple[int, int, str]:
    """In the whole text, with the padding behind it, and with spaces where letters stand beside it: they are no part of its words."""
    text, start, end = stretch.string, stretch.start() + start, stretch.start() + end
    before = " " if start > stretch.start() and not text[start - 1].isspace() else ""
    after = " " if end < stretch.end() and not text[end].isspace() else ""
    padding = len(text[end : end + 2]) - len(text[end : end + 2].lstrip("="))
    return start, end + padding, before + said + after


def _texts(letters: str, places: Sequence[int], alone: bool) -> Iterator[tuple[int, int, str]]:
    """Texts in base64 that begins at any of four letters. places: of the letters. alone: what is text as a whole may be short."""
    standard = letters.translate(_STANDARD64)
    for skipped in range(min(4, len(letters))):
        whole = len(standard) - skipped - ((len(standard) - skipped) % 4 == 1)  # one letter is less than a byte
        data = base64.b64decode(standard[skipped : skipped + whole] + "=" * (-whole % 4))
        for start, end in _runs(data):
            try:
                said = data[start:end].decode("utf-8")
            except UnicodeDecodeError:
                continue
            whole_word = alone and end - start == len(data)
            if end - start < SURE_RUN and not _is_words(said, 4 if whole_word else 8, 2 if whole_word else LEAST_RUN):
                continue
            last = min(skipped + -(-end * 4 // 3), len(letters)) - 1
            yield places[skipped + start * 4 // 3], places[last] + 1, said


def _is_words(text: str, per_sign: int, least: int) -> bool:
    """Whether a text has letters, digits and spaces, `least` characters, and no more than a sign in so many."""
    odd = sum(not (letter.isalnum() or letter.isspace()) for letter in text)
    return len(text) >= least and odd * per_sign <= len(text)


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Where bytes are text, no more than a control character in twenty."""
    for run in _LOOSE_RUN.finditer(data):
        odd = len(run[0]) - len(run[0].translate(None, _CONTROL))
        if odd * 20 <= len(run[0]):
            yield run.span()
        else:
            yield from (strict.span() for strict in _RUN.finditer(data, run.start(), run.end()))


def _from_hex(text: str) -> bytes:
    digits = text.replace(" ", "").replace(":", "")
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _from_percent(text: str) -> bytes:
    return unquote_to_bytes(text.replace("+", " ")) if text.count("%") >= 3 else b""


def _from_escape(text: str) -> str | None:
    """One character; None for half of one, and for a name that no character has."""
    kind, digits = text[1], text[2:]
    if kind == "N":
        try:
            return unicodedata.lookup(digits[1:-1])
        except KeyError:
            return None
    if kind in "uUx":
        codes = [int(one, 16) for one in re.split(r"\\u", digits)]
    elif kind.isdigit():
        codes = [int(text[1:], 8)]
    else:
        return _ESCAPED.get(kind, kind)
    if codes[0] > 0x10FFFF:
        return None
    said = "".join(map(chr, codes)).encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return said or None


def _printable(data: bytes) -> str | None:
    """The bytes as text when they are text: UTF-8, and no more than a control character in twenty."""
    if len(data) < 3:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    odd = sum(not (letter.isprintable() or letter in "\n\t\r") for letter in text)
    return text if odd * 20 <= len(text) else None
