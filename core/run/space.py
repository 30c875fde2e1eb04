"""The space that `burnish tune` searches: for keys of a recipe, listed values, all of which are tried, or ranges, which are sampled.

    --space "rft.lr={low=1e-6, high=1e-4, log=true}" --space "rft.group_size=[4, 8]"

or the same as a TOML file, `--space space.toml`:

    [rft]
    lr = { low = 1e-6, high = 1e-4, log = true }
    group_size = [4, 8]
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.recipe.overrides import parse_override
from burnish.rpc.urls import shown_value

DIGITS = 6
"""Significant ones of a sampled number: an override that a person reads and types."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from low to high, both included; whole ones where both are. log: even in their logarithm.

    Example: `Range(1e-6, 1e-4, log=True)`.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Dimension = Range | tuple[Any, ...]
Space = Mapping[str, Dimension]
"""By key of the recipe, such as "rft.lr"."""


def read_space(given: Sequence[str]) -> Space:
    """The space of `--space` options, files or `KEY=…`; of a key that is named twice, the last. Raises ValueError naming what is wrong."""
    space: dict[str, Dimension] = {}
    for text in given:
        if os.path.isfile(text):  # False of a text that is too long for a path, too
            try:
                space.update(_dimensions(_table(Path(text)), "", text))
            except RecursionError as error:
                raise ValueError(f"{text}: is no space: its tables are nested too deeply") from error
        elif "=" not in text:
            raise ValueError(f"--space {text}: is no file, and not KEY=[VALUE, …] or KEY={{low = …, high = …}}")
        else:
            override = parse_override(text)
            key = ".".join(override.path)
            space[key] = _dimension(override.value, key)
    if not space:
        raise ValueError('the space is empty: say what to vary, for example --space "rft.lr={low=1e-6, high=1e-4, log=true}"')
    return space


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """What `--set` takes. Example: `overrides_of({"rft.lr": 3.00000004e-5})` is `["rft.lr=3e-05"]`."""
    return [f"{key}={json.dumps(float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value)}" for key, value in values.items()]


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Every listed value and every end of a range once, the other keys at their first: what is looked at before anything runs."""
    ends = {key: (one.low, one.high) if isinstance(one, Range) else one for key, one in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    yield from ({**first, key: value} for key, values in ends.items() for value in values[1:])


def combinations(space: Space) -> int:
    """Of listed values, each with each."""
    return math.prod(len(one) for one in space.values() if not isinstance(one, Range))


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the parser's own, numbers of thousands of digits, nesting
        raise ValueError(f"{file}: is no TOML: {error}") from error


def _dimensions(data: Mapping[str, Any], above: str, file: str) -> Iterator[tuple[str, Dimension]]:
    for name, value in data.items():
        key = f"{above}.{name}" if above else name
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _dimensions(value, key, file)
        else:
            yield key, _dimension(value, f"{file}: {key}")


def _dimension(value: Any, where: str) -> Dimension:
    if isinstance(value, list) and value:
        wrong = [one for one in value if isinstance(one, Mapping)]
        if wrong:
            raise ValueError(f"{where}: a listed value is a number, a text, a boolean or a list, not a table")
        return tuple(value)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where}: must be a list of values, or {{low = …, high = …}}, not {shown_value(value, where.rpartition(': ')[2])}"
        )
    unknown = sorted(value.keys() - {"low", "high", "log"})
    if unknown or not {"low", "high"} <= value.keys():
        raise ValueError(
            f"{where}: a range has low, high and, if it is even in the logarithm, log = true; not {', '.join(unknown or value)}"
        )
    low, high, log = value["low"], value["high"], value.get("log", False)
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in (low, high))
    if not numbers or not isinstance(log, bool) or not low < high:
        raise ValueError(f"{where}: low and high must be numbers, low the smaller one, and log true or false")
    if log and low <= 0:
        raise ValueError(f"{where}: a range that is even in the logarithm begins above 0, not at {low}")
    return Range(low, high, log)
