"""What may travel inside a message: plain JSON values and UTF-8 text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEPTH = 32
INT64 = range(-(2**63), 2**63)
MAX_JSON_CHARS = 8 << 20
"""Of one field of JSON in a message. Its text is quickly read; what takes time and memory are its values."""
MAX_JSON_VALUES = 100_000
"""In one field of JSON: a sender whose whole message is `[],[],…` would hold the receiver's event loop for minutes."""

SHOWN = 80
"""Characters of a key that are said of a place: it is worked out for every value below."""

_CONTAINER = re.compile(r"\s*+[\[{]")
# A string, which goes to the end of the text where it does not end, so that every character is looked at once; what is empty; what is not.
_MARKS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]\s*+[\]}]|[\[\]{},]', re.DOTALL)


class PayloadError(ValueError):
    """A value that JSON cannot carry faithfully; the text says where it is."""


def plain_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an object made of what every JSON reader agrees on: string keys, finite numbers, integers of 64 bits, valid Unicode,
    arrays as lists.

    Raises PayloadError naming the first place where `value` is something else.
    """
    plain = _plain(value, "", 0)
    assert isinstance(plain, dict)
    return plain


def plain_value(value: Any, what: str = "the value") -> Any:
    """A copy of any JSON value, as `plain_json` makes one of an object. Raises PayloadError naming the first place that is none."""
    return _plain(value, what, 0)


def encode_json(value: Mapping[str, Any]) -> str:
    """The object as JSON text; an empty object as an empty string. Raises PayloadError as `plain_json` does."""
    return json.dumps(plain_json(value), separators=(",", ":")) if value else ""


def decode_json(text: str) -> dict[str, Any]:
    """The object that `encode_json` wrote, possibly in another language. Raises PayloadError when it is no plain JSON object, or is larger
    than `MAX_JSON_CHARS` and `MAX_JSON_VALUES` allow."""
    if not text:
        return {}
    value = decode_value(text)
    if not isinstance(value, dict):
        raise PayloadError(f"must be a JSON object, not {type(value).__name__}")
    return value


def decode_value(text: str) -> Any:
    """Any plain JSON value of a message. Raises PayloadError as `decode_json` does."""
    if len(text) > MAX_JSON_CHARS:
        raise PayloadError(f"has {len(text)} characters of JSON; the limit is {MAX_JSON_CHARS}")
    if more_values(text, MAX_JSON_VALUES):
        raise PayloadError(f"holds more than {MAX_JSON_VALUES} JSON values")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"not valid JSON: {error}") from None
    return value if _is_plain(value, 0) else _plain(value, "", 0)


def check_together(where: str, texts: Sequence[str]) -> None:
    """Raise PayloadError where texts of JSON, each of them within its bounds, are too large together. Those before the first that is no
    JSON are counted."""
    characters = sum(map(len, texts))
    if characters > MAX_JSON_CHARS:
        raise PayloadError(f"{where} has {characters} characters of JSON; the limit is {MAX_JSON_CHARS}")
    if more_values(f"[{','.join(texts)}]", MAX_JSON_VALUES):
        raise PayloadError(f"{where} holds more than {MAX_JSON_VALUES} JSON values")


def more_values(text: str, most: int, start: int = 0) -> bool:
    """Whether the JSON value that begins at a place of a text holds more than `most` others; nothing of it is made to find out.

    Example: `more_values("[[], []] [1, 2, 3]", 2)` is False.
    """
    if len(text) - start <= most or _CONTAINER.match(text, start) is None:  # a text or a number holds none
        return False
    depth = found = 0  # a container has a value more than commas, unless it is empty
    for mark in _MARKS.finditer(text, start):
        first, empty = text[mark.start()], mark.end() - mark.start() > 1
        if first == "," or (first in "[{" and not empty):
            found += 1
        if not empty:
            depth += (first in "[{") - (first in "]}")
        if found > most and depth > 0:
            return True
        if depth <= 0:  # a string, what is empty, or the end of what is not
            return False
    return False


def utf8(text: str) -> str:
    """The text with lone surrogates replaced by "?": a policy can write them as escapes, and UTF-8 cannot carry them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def deeper_than(value: Any, levels: int) -> bool:
    """Whether decoded JSON is nested more than `levels` arrays and objects deep; works on any depth."""
    layer = [value]
    for _ in range(levels + 1):
        nested = [item for item in layer if isinstance(item, dict | list)]
        if not nested:
            return False
        layer = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value that was read from JSON is one that `_plain` takes."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, str):
        return utf8(value) == value
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):  # true and false too
        return value in INT64
    if isinstance(value, list):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(utf8(key) == key and _is_plain(item, depth + 1) for key, item in value.items())
    return True


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise PayloadError(f"{where or 'the object'} is nested more than {MAX_DEPTH} levels deep")
    if value is None or isinstance(value, bool):
        plain: Any = value
    elif isinstance(value, str):
        if utf8(value) != value:
            raise PayloadError(f"{where} holds a lone surrogate, which is no valid text")
        plain = value
    elif isinstance(value, int):
        if value not in INT64:
            raise PayloadError(f"{where} is an integer beyond 64 bits")
        plain = int(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PayloadError(f"{where} is {value}, not a finite number")
        plain = float(value)
    elif isinstance(value, Mapping):
        plain = _plain_object(value, where, depth)
    elif isinstance(value, list | tuple):
        plain = [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    else:
        raise PayloadError(f"{where or 'the object'} is a {type(value).__name__}, which JSON does not have")
    return plain


def _plain_object(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    plain = {}
    for key, item in value.items():
        if not isinstance(key, str) or utf8(key) != key:
            raise PayloadError(f"{where or 'the object'} has the key {key!r:.80}, which is not a valid string")
        name = key if len(key) <= SHOWN else f"{key[:SHOWN]}…"
        plain[key] = _plain(item, f"{where}.{name}" if where else name, depth + 1)
    return plain
