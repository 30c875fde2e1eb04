"""How a text can be read: what hides words from a filter is undone, and every character still knows where it came from.

Undone are Unicode's variants (NFKC), invisible characters, letters that look alike in other scripts, digits that stand for letters, letters
with spaces between them, and base64, hexadecimal, percent, rot13 and reversed writing, and the escapes by which JSON and Python write
characters in the arguments of tool calls. What is decoded is never longer than what it stands in for.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from .registry import Reads

MAX_TEXT = 1_000_000
MAX_READ = 4 * MAX_TEXT
"""Characters of all readings of one text together."""
MAX_TURNED = 20_000
"""Characters of a text that is also read in rot13 and from its end."""
DEPTH = 2
"""An encoding within an encoding is decoded, and no deeper."""

LOOKALIKES = dict(
    zip(
        "аеорсухіјѕԁһпкмтвАВЕКМНОРСТУХІЈЅαονρτυκιΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑɡǀⅼ",
        "aeopcyxijsdhnkmtbABEKMHOPCTYXIJSaovptukiABEZHIKMNOPTYXiagll",
        strict=True,
    )
)
"""Cyrillic, Greek and other letters that pass for Latin ones (from Unicode Technical Standard 39)."""
MARKS = frozenset(map(chr, range(0x300, 0x370)))
"""Combining marks of Latin, Greek and Cyrillic: what NFKC leaves of them belongs to no letter of any language."""
LEET = dict(zip("0134578@$!|€", "oieastbasile", strict=True))

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,20000}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){4,10000}")
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2}|[A-Za-z0-9_.~+-]){3,20000}")
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # one character of two halves
    r"|\\(?:u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{1,3}|N\{[A-Za-z0-9 -]{1,88}\}|[\n\"'\\/abfnrtv])"
)
_ESCAPED = {"\n": "", "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
"""What a letter behind a backslash stands for; a line's end stands for nothing, and others for themselves."""
_SPACED = re.compile(r"(?<!\w)\w(?:[ .\-_*]\w){2,200}(?!\w)")  # one letter and one gap after the other: nothing to go back over
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


def readings(text: str) -> Iterator[Reading]:
    """Every reading that says something else than the ones before it, the plain one first.

    Raises ValueError beyond a million characters, and where the readings together have more than `MAX_READ`.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text)} characters is too long to be looked at; at most {MAX_TEXT}")
    plain = _plain(text)
    yield plain
    seen, read = {plain.text}, len(plain.text)
    for reading in _others(plain, DEPTH):
        read += len(reading.text)
        if read > MAX_READ:
            raise _too_many(text)
        if reading.text and reading.text not in seen:
            seen.add(reading.text)
            yield reading


def _too_many(text: str) -> ValueError:
    return ValueError(f"a text of {len(text)} characters can be read in too many ways to be looked at; at most {MAX_READ} in all")


def _others(reading: Reading, depth: int) -> Iterator[Reading]:
    yield from _folded(reading)
    if depth:
        for decoded in _decoded(reading):
            yield decoded
            yield from _others(decoded, depth - 1)


def _plain(text: str) -> Reading:
    """NFKC, without what cannot be seen. A character and the marks that follow it are one piece, so that they can be put together.

    Raises ValueError beyond `MAX_READ` characters: one ligature can be a whole phrase.
    """
    if text.isascii():
        return Reading("plain", "plain", text)
    made, at, start = list[str](), list[tuple[int, int]](), 0
    while start < len(text):
        end = start + 1
        while end < len(text) and (unicodedata.combining(text[end]) or text[end] in "ﾞﾟ") and end - start < 32:
            end += 1
        made.append("".join(filter(_is_seen, unicodedata.normalize("NFKC", text[start:end]))))
        at += [(start, end)] * len(made[-1])
        if len(at) > MAX_READ:
            raise _too_many(text)
        start = end
    new = "".join(made)
    return Reading("plain", "plain", text) if new == text else Reading("plain", "plain", new, tuple(at))


def _is_seen(letter: str) -> bool:
    return letter in "\n\t\r" or (unicodedata.category(letter) not in ("Cf", "Cc") and letter not in MARKS)


def _folded(reading: Reading) -> Iterator[Reading]:
    """Letters that look like others, digits for letters, letters with spaces between them."""
    name = "" if reading.name == "plain" else f"{reading.name}+"
    looks = reading
    if not reading.text.isascii():
        looks = _same_length(reading, f"{name}lookalikes", lambda text: "".join(LOOKALIKES.get(letter, letter) for letter in text))
        yield looks
    joined = _joined(looks, f"{name}spaced")
    if joined is not None:
        yield joined
    for one in (looks, *([joined] if joined else [])):
        yield _same_length(one, f"{name}leet", lambda text: _TOKEN.sub(_unleet, text))


def _same_length(reading: Reading, name: str, change: Callable[[str], str]) -> Reading:
    text = change(reading.text)
    assert len(text) == len(reading.text)
    return Reading(name, "folded", text, reading.at)


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
    for name, pattern, decode in (("base64", _BASE64, _from_base64), ("hex", _HEX, _from_hex), ("percent", _PERCENT, _from_percent)):
        decoded = _replaced(reading, f"{prefix}{name}", pattern, lambda text, decode=decode: _printable(decode(text)))  # type: ignore[misc]
        if decoded is not None:
            yield decoded
    unescaped = _replaced(reading, f"{prefix}escapes", _ESCAPE, _from_escape) if "\\" in reading.text else None
    if unescaped is not None:
        yield unescaped
    text = reading.text
    if len(text) <= MAX_TURNED and (words := _common(text)) < 3:
        turned = codecs.encode(text, "rot13")
        if _common(turned) > words:
            yield Reading(f"{prefix}rot13", "decoded", turned, reading.at)
        back = text[::-1]
        if _common(back) > words:
            yield Reading(f"{prefix}reversed", "decoded", back, tuple(reading.origin(i, i + 1) for i in range(len(text) - 1, -1, -1)))


def _replaced(reading: Reading, name: str, pattern: re.Pattern[str], decode: Callable[[str], str | None]) -> Reading | None:
    """The text with every stretch that decodes to text in its place; each of those characters stands for the whole stretch."""
    made, at, done = list[str](), list[tuple[int, int]](), 0
    for stretch in pattern.finditer(reading.text):
        said = decode(stretch[0])
        if said is not None:
            plain, where = _plain(said).text, reading.origin(stretch.start(), stretch.end())
            made += [reading.text[done : stretch.start()], plain]
            at += [*(reading.origin(i, i + 1) for i in range(done, stretch.start())), *([where] * len(plain))]
            done = stretch.end()
    if not done:
        return None
    made.append(reading.text[done:])
    at += [reading.origin(i, i + 1) for i in range(done, len(reading.text))]
    return Reading(name, "decoded", "".join(made), tuple(at))


def _common(text: str) -> int:
    return sum(word in _COMMON for word in re.findall(r"\w+", text.lower()))


def _from_base64(text: str) -> bytes:
    stripped = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(stripped + "=" * (-len(stripped) % 4))
    except (binascii.Error, ValueError):
        return b""


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
