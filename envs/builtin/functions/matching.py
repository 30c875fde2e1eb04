"""Whether the calls that were made are those that were wanted.

Wanted calls are written as bfcl-eval writes its possible answers (the Berkeley Function Calling Leaderboard, Patil et al. 2025): one object
per call, the function's name to its parameters, and each parameter to the list of values that are right. A `""` among them says that the
parameter may be left out. An object among the values has such a list for each of its own keys.

    [{"triangle_area": {"base": [10], "height": [5], "unit": ["units", ""]}}]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...types import ToolCall

Wanted = Mapping[str, Mapping[str, Sequence[Any]]]

_IGNORED = re.compile(r"[\s,./_*^-]")
MOST = 32
"""Calls that may be wanted of one answer; no parser reads more."""


def plain_name(name: str) -> str:
    """A function's name as a call can be written in every format: bfcl-eval's have dots. Example: "math.area" is "math_area"."""
    return name.replace(".", "_")


def check_wanted(wanted: Any) -> tuple[Wanted, ...]:
    """The calls that a task wants. Raises ValueError saying what of them is unfit."""
    if not isinstance(wanted, list | tuple) or len(wanted) > MOST:
        raise ValueError(f"calls must be a list of at most {MOST} objects, one per call, empty where none is to be made")
    for i, call in enumerate(wanted):
        if not isinstance(call, Mapping) or len(call) != 1:
            raise ValueError(f'calls[{i}] must be an object of one function, {{"name": {{"parameter": [values]}}}}')
        name, arguments = next(iter(call.items()))
        if not isinstance(arguments, Mapping) or not all(isinstance(values, list) and values for values in arguments.values()):
            raise ValueError(f"calls[{i}].{name} must give each parameter a list of the values that are right")
    return tuple(wanted)


def are_wanted(calls: Sequence[ToolCall], wanted: Sequence[Wanted]) -> bool:
    """Whether each call is one that is wanted, and none is missing, in any order.

    Example: `are_wanted([ToolCall("", "area", {"base": 10.0})], [{"area": {"base": [10], "unit": ["cm", ""]}}])`.
    """
    if len(calls) != len(wanted):
        return False
    fits = [[i for i, one in enumerate(wanted) if _is_call(call, one)] for call in calls]
    taken: dict[int, int] = {}
    return all(_placed(call, fits, taken, set()) for call in range(len(calls)))


def _placed(call: int, fits: Sequence[Sequence[int]], taken: dict[int, int], tried: set[int]) -> bool:
    """Whether a call can have a wanted one to itself, where need be by moving others (Kuhn's matching)."""
    for place in fits[call]:
        if place in tried:
            continue
        tried.add(place)
        if place not in taken or _placed(taken[place], fits, taken, tried):
            taken[place] = call
            return True
    return False


def _is_call(call: ToolCall, wanted: Wanted) -> bool:
    name, arguments = next(iter(wanted.items()))
    return plain_name(call.name) == plain_name(name) and _fit(call.arguments, arguments)


def _fit(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every value is among the right ones of its key, and no key is missing that may not be left out."""
    known = all(key in wanted and any(_is(value, one) for one in _values(wanted[key])) for key, value in given.items())
    return known and all("" in _values(wanted[key]) for key in wanted.keys() - given.keys())


def _values(wanted: Any) -> Sequence[Any]:
    return wanted if isinstance(wanted, list) else (wanted,)


def _is(value: Any, wanted: Any) -> bool:
    """Texts are equal but for case, white space and punctuation; numbers by value; lists item by item, in their order."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return value == wanted
    if isinstance(value, str) and isinstance(wanted, str):
        return _plain(value) == _plain(wanted)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_is, value, wanted))
    if isinstance(value, Mapping) and isinstance(wanted, Mapping):
        return _fit(value, wanted)
    return value is None and wanted is None


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).casefold().replace("'", '"')
