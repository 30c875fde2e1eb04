"""Values of Gymnasium spaces in words, and words back into actions: what `GymnasiumText` uses unless told otherwise.

    space                              in words                              read back from
    Discrete                           3, or the name of the action          exactly one of the names, anywhere in the reply
    Box, MultiDiscrete, MultiBinary    [0.5, -0.25]                          exactly as many numbers, anywhere in the reply
    Text                               the text                              the whole reply
    Dict, Tuple                        a line `name: value` for each part    one such line for each part; other lines are left alone

Parts of parts have dotted names: `arm.angle: 0.5`; the parts of a Tuple are called 0, 1, ….
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from ..spaces import UnicodeText

MAX_REPLY_CHARS = 4096
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The reply holds no action. Example: `Unreadable("Answer with exactly one of: left, down, right, up.")`."""

    expected: str


@dataclass(frozen=True, slots=True)
class ActionWords:
    """How actions of one space are said and read.

    expected: what follows "Answer with". read: the action in a text, or None. say: an action as the text that reads back as it.

    Example: `action_words(Discrete(2), ["left", "right"]).read("Left!")` is 0.
    """

    expected: str
    read: Callable[[str], Any]
    say: Callable[[Any], str]

    @property
    def unreadable(self) -> Unreadable:
        return Unreadable(f"Answer with {self.expected}" + ("" if "\n" in self.expected else "."))


def describe_space(space: spaces.Space[Any], value: Any) -> str:
    """`value` of `space` in words. Example: `describe_space(Box(-1, 1, (2,)), np.array([0.5, -0.25]))` is "[0.5, -0.25]"."""
    if not _parts(space):
        return _leaf_in_words(space, value)
    return "\n".join(f"{name}: {_leaf_in_words(leaf, part)}" for name, leaf, part in _leaves_of(space, value))


def action_words(space: spaces.Space[Any], names: Sequence[str] | None = None) -> ActionWords | None:
    """How actions of `space` are said and read, or None for a kind of space that is not known. names: words for a Discrete space's
    actions, in order."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return _choice(names or [str(start + i) for i in range(int(space.n))], start)
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        return _several_numbers(space)
    if isinstance(space, spaces.Text | UnicodeText):
        return ActionWords(f"text of {space}", lambda text: text if space.contains(text) else None, str)
    return _composite(space) if _parts(space) else None


def read_choice(names: Sequence[str], start: int = 0) -> Callable[[str], int | Unreadable]:
    """Reads one of `names` (whole word, any case) as the action `start` + its index; the reply must mention exactly one of them."""
    return _reader(_choice(names, start))


def read_numbers(space: spaces.Space[Any]) -> Callable[[str], Any]:
    """Reads as many numbers as a Box, MultiDiscrete or MultiBinary action has; Unreadable unless they lie in the space."""
    return _reader(_several_numbers(space))


def read_parts(space: spaces.Space[Any]) -> Callable[[str], Any]:
    """Reads a Dict or Tuple action from lines `name: value`; Unreadable unless every part has exactly one line that reads as it.

    Raises ValueError when a part is of a kind of space that is not known.
    """
    words = _composite(space)
    if words is None:
        raise ValueError(f"actions of {space} have no reader")
    return _reader(words)


def numbers_in(space: spaces.Space[Any]) -> int | None:
    """How many numbers a description of `space` holds, or None when the space, or a part of it, is of no kind that is known."""
    if _parts(space):
        sizes = [numbers_in(part) for part in _parts(space).values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        return math.prod(space.shape or ())
    return 1 if isinstance(space, spaces.Discrete | spaces.Text | UnicodeText) else None


def _reader(words: ActionWords) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        action = words.read(text)
        return words.unreadable if action is None else action

    return read


def _choice(names: Sequence[str], start: int) -> ActionWords:
    patterns = [re.escape(name.casefold()) for name in sorted(names, key=len, reverse=True)]  # "up left" before "left"
    pattern = re.compile(rf"(?<![\w.+-])(?:{'|'.join(patterns)})(?!\w|\.\d)")
    index = {name.casefold(): start + i for i, name in enumerate(names)}
    listed = ", ".join(names) if len(names) <= 32 else f"{names[0]}, {names[1]}, …, {names[-1]}"

    def read(text: str) -> int | None:
        found = set(pattern.findall(text[-MAX_REPLY_CHARS:].casefold()))
        return index[found.pop()] if len(found) == 1 else None

    return ActionWords(f"exactly one of: {listed}", read, lambda action: names[int(action) - start])


def _several_numbers(space: spaces.Space[Any]) -> ActionWords:
    shape = space.shape or ()
    dtype: np.dtype[Any] = np.dtype(space.dtype)
    count = math.prod(shape)
    whole = dtype.kind != "f"
    kind = "whole number" if whole else "number"
    bounds = f" between {_numbers(space.low)} and {_numbers(space.high)}" if isinstance(space, spaces.Box) else _choices(space)

    def read(text: str) -> Any:
        found = _NUMBER.findall(text[-MAX_REPLY_CHARS:])
        numbers = [float(number) for number in found] if len(found) == count else []
        limits: Any = np.iinfo(dtype) if whole else np.finfo(dtype)
        if not numbers or not all(limits.min <= n <= limits.max and (not whole or n.is_integer()) for n in numbers):
            return None
        action = np.array(numbers, dtype=dtype).reshape(shape)
        return action if space.contains(action) else None

    def say(action: Any) -> str:
        # str of a numpy number is the shortest text that reads back as it
        return " ".join(str(number) for number in np.asarray(action, dtype=dtype).ravel())

    return ActionWords(f"{count} {kind}{'s' if count > 1 else ''}{bounds}", read, say)


def _choices(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.MultiDiscrete):
        return f", each from {_numbers(space.start)} to {_numbers(space.start + space.nvec - 1)}"
    return ", each 0 or 1"


def _composite(space: spaces.Space[Any]) -> ActionWords | None:
    leaves: dict[str, ActionWords] = {}
    for name, leaf in _leaf_spaces(space):
        words = action_words(leaf)
        if words is None or name in leaves:  # 1 and "1", or "a.b" beside a: {b: …}, have one name for two parts
            return None
        leaves[name] = words
    # names are read in any case, unless some differ in nothing else
    case = re.IGNORECASE if len({name.casefold() for name in leaves}) == len(leaves) else re.NOFLAG
    lines = {name: re.compile(rf"^(?:[*`-]|[^\S\n])*{re.escape(name)}[*`]*[ \t]*[:=][ \t]*(.*)$", re.MULTILINE | case) for name in leaves}

    def read(text: str) -> Any:
        values: dict[str, Any] = {}
        for name, words in leaves.items():
            found = lines[name].findall(text[-MAX_REPLY_CHARS:])
            value = words.read(found[0].strip()) if len(found) == 1 else None
            if value is None:
                return None
            values[name] = value
        return _assemble(space, values, "")

    def say(action: Any) -> str:
        return "\n".join(f"{name}: {leaves[name].say(part)}" for name, _, part in _leaves_of(space, action))

    expected = "\n".join(["a line for each of:", *(f"{name}: {words.expected}" for name, words in leaves.items())])
    return ActionWords(expected, read, say)


def _parts(space: spaces.Space[Any]) -> Mapping[str, spaces.Space[Any]]:
    """The parts of a Dict or Tuple by name; of any other space, none."""
    if isinstance(space, spaces.Dict):
        return {str(key): part for key, part in space.spaces.items()}
    return {str(i): part for i, part in enumerate(space.spaces)} if isinstance(space, spaces.Tuple) else {}


def _leaf_spaces(space: spaces.Space[Any], prefix: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    for name, part in _parts(space).items():
        if _parts(part):
            yield from _leaf_spaces(part, f"{prefix}{name}.")
        else:
            yield prefix + name, part


def _leaves_of(space: spaces.Space[Any], value: Any, prefix: str = "") -> Iterator[tuple[str, spaces.Space[Any], Any]]:
    values = [value[key] for key in space.spaces] if isinstance(space, spaces.Dict) else value
    for (name, part), inner in zip(_parts(space).items(), values, strict=True):
        if _parts(part):
            yield from _leaves_of(part, inner, f"{prefix}{name}.")
        else:
            yield prefix + name, part, inner


def _assemble(space: spaces.Space[Any], values: Mapping[str, Any], prefix: str) -> Any:
    inner = [_assemble(part, values, f"{prefix}{name}.") if _parts(part) else values[prefix + name] for name, part in _parts(space).items()]
    return dict(zip(space.spaces, inner, strict=True)) if isinstance(space, spaces.Dict) else tuple(inner)


def _leaf_in_words(space: spaces.Space[Any], value: Any) -> str:
    return _numbers(np.asarray(value)) if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary) else str(value)


def _numbers(array: np.ndarray[Any, Any]) -> str:
    if array.ndim > 1:
        return "[" + ",\n ".join(_numbers(row) for row in array) + "]"
    if array.ndim == 0:
        return _number(array.item()) if array.dtype.kind == "f" else str(array.item())
    return "[" + ", ".join(_numbers(number) for number in array) + "]"


def _number(value: float) -> str:
    """Four significant digits, and all of those before the decimal point, as far as a float has them."""
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"
