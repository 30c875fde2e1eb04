"""TOML of strangers, which tomllib alone would read for minutes: the time for a key is the square of the parts that dots part it into."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MOST_PARTS: Final = 32
"""Of one key."""

_PART = r"""(?:[\w-]++|"(?:[^"\\\n]++|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY: Final = re.compile(rf"(?<![\w\\-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MOST_PARTS}}}")


def read_toml(file: Path, largest: int) -> dict[str, Any]:
    """The tables of a TOML file of at most `largest` bytes. Raises ValueError naming the file and what is wrong with it."""
    if file.stat().st_size > largest:
        raise ValueError(f"{file}: {file.stat().st_size} bytes; it may have at most {largest}")
    try:
        return parse_toml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{file}: not TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError, for more than `MOST_PARTS` words with dots between them in a string too."""
    found = _LONG_KEY.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"a key of more than {MOST_PARTS} parts (at line {line}); write tables within tables")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists or tables lie too deep within each other") from None


def as_json(tables: Mapping[str, Any]) -> str:
    """Tables of TOML for pydantic to read strictly: as JSON a list may be a tuple, and nothing else is what it is not. Dates are strings.

    Raises ValueError where they lie too deep within each other.
    """
    try:
        return json.dumps(tables, default=str)
    except RecursionError:
        raise ValueError("lists or tables lie too deep within each other") from None
