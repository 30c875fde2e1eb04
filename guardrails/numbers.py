"""Numbers as digits: `1e3`, `1E+3` and `1000.0` are one number to whoever receives it, and one text to whoever looks at it."""

from __future__ import annotations

import math
import re
from typing import Any

MOST_DIGITS = 400
"""Of a number that is written out: no float has more in front of its point or between it and its first digit."""
_DIGITS = r"[0-9]++(?:_[0-9]++)*+"
_DECIMAL = rf"(?:{_DIGITS}(?:\.(?:{_DIGITS})?+)?+|\.{_DIGITS})"
NUMBER = re.compile(
    rf"(?<![\w.])-?(?:{_DECIMAL}[eE][+-]?{_DIGITS}"
    rf"|(?=[0-9.]*+_){_DECIMAL}"
    r"|(?=[0-9.]{17})[0-9]*+\.[0-9]*+)(?!\w|\.[0-9])"  # with more than 15 digits it may be rounded
    r"|(?<=[\s:=,(\[])(?:-?[0-9]++\.0++|-?0[0-9]++\.[0-9]*+|-0++)(?=\s*+(?:[,)\]}]|$))"  # the value of an argument, or a number in prose
)
"""Numbers in a text that have another form than their digits."""
MOST_WRITTEN = 40
"""Digits of a number of a text that is written out: none that matters has so many."""
_NUMBER = re.compile(r"(-?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?)0*([0-9]{1,6}))?")

_TRUE, _FALSE = frozenset({"1", "on", "t", "true", "y", "yes"}), frozenset({"0", "off", "f", "false", "n", "no"})
"""What pydantic takes for a truth value, in any case."""


def digits(value: int | float) -> str:
    """The digits of a finite number, the same for those that are equal; of one that is not finite, its name.

    Example: `digits(1e3) == digits(1000) == "1000"`, `digits(-0.0) == "0"`, `digits(1e-7) == "0.0000001"`.
    """
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    written = written_out(repr(value))
    return repr(value) if written is None else written


def written_shortly(number: str) -> str | None:
    """`written_out`, where it has at most `MOST_WRITTEN` digits. Python takes underscores between them."""
    return written_out(number.replace("_", ""), MOST_WRITTEN)


def rounded(number: str) -> str | None:
    """The digits of the float that a number is read as, where they are others than its own: `999.99999999999999999` is 1000.

    None where they are not, are more than `MOST_WRITTEN`, or where there is no such float.
    """
    written, value = written_shortly(number), float(number)
    if not math.isfinite(value) or (written is not None and len(number) < 17):  # 15 digits are kept
        return None
    said = written_out(repr(value), MOST_WRITTEN)
    return said if said != written else None


def written_out(number: str, most: int = MOST_DIGITS) -> str | None:
    """A number of JSON or Python in digits, without zeros that say nothing. None when it is none, or would have more than `most` of them.

    Example: `written_out("4.1E+2") == "410"`, `written_out("-0.0") == "0"`.
    """
    found = _NUMBER.fullmatch(number)
    if found is None:
        return None
    sign, whole, fraction, minus, exponent = found.groups(default="")
    leading = (whole + fraction).lstrip("0")
    if not leading:
        return "0" if whole + fraction else None
    point = len(leading) - len(fraction) + int(minus + (exponent or "0"))  # how many of the digits stand in front of it
    significant = leading.rstrip("0")
    if max(point, len(significant) - min(point, 0)) > most:
        return None
    if point <= 0:
        return f"{sign}0.{'0' * -point}{significant}"
    if point >= len(significant):
        return sign + significant + "0" * (point - len(significant))
    return f"{sign}{significant[:point]}.{significant[point:]}"


def as_number(value: Any) -> Any:
    """What a value is where a whole number is wanted; itself where it is none. Example: `as_number(" +1_000.0") == 1000`."""
    if isinstance(value, bool):
        return int(value)
    written = written_out(value.strip().replace("_", "").removeprefix("+")) if isinstance(value, str) else None
    return int(written) if written is not None and "." not in written else value


def as_float(value: Any) -> Any:
    """What a value is where a float is wanted; itself where it is none. Example: `as_float("1e3") == 1000.0`."""
    if not isinstance(value, str | int):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def as_truth(value: Any) -> Any:
    """What a value is where a truth value is wanted; itself where it is none. Example: `as_truth("Yes") is True`."""
    said = value.strip().lower() if isinstance(value, str) else digits(value) if isinstance(value, int | float) else ""
    return True if said in _TRUE else False if said in _FALSE else value
