"""Numbers as digits: `1e3`, `1E+3` and `1000.0` are one number to whoever receives it, and one text to whoever looks at it."""

from __future__ import annotations

import re

MOST_DIGITS = 400
"""Of a number that is written out: no float has more in front of its point or between it and its first digit."""
NUMBER = re.compile(
    r"(?<![\w.])-?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)[eE][+-]?0*[0-9]{1,3}(?!\w|\.[0-9])"
    r"|(?<=[\s:=,(\[])(?:-?[0-9]++\.0++|-0++)(?=\s*+(?:[,)\]}]|$))"  # the value of an argument, or a number in prose
)
"""Numbers in a text that have another form than their digits."""
MOST_WRITTEN = 40
"""Digits of a number of a text that is written out: none that matters has so many."""
_NUMBER = re.compile(r"(-?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?)0*([0-9]{1,6}))?")


def digits(value: int | float) -> str:
    """The digits of a finite number, the same for those that are equal; of one that is not finite, its name.

    Example: `digits(1e3) == digits(1000) == "1000"`, `digits(-0.0) == "0"`, `digits(1e-7) == "0.0000001"`.
    """
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    written = written_out(repr(value))
    return repr(value) if written is None else written


def written_shortly(number: str) -> str | None:
    """`written_out`, where it has at most `MOST_WRITTEN` digits."""
    return written_out(number, MOST_WRITTEN)


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
