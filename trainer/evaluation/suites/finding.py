"""Finding suites: by their ids, or in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ....envs.registry import ID_PATTERN
from .files import read_suite
from .suite import SUITES, Suite


def find_suite(name: str) -> Suite:
    """The suite of an id, or in a TOML file. Raises ValueError when there is none, or its file is unfit."""
    if name.endswith(".toml"):
        return read_suite(Path(name))
    if not ID_PATTERN.match(name):
        raise ValueError(f"suite {name!r} is no id (namespace/name-v1; `burnish suites` lists them) and no file (*.toml)")
    found = SUITES.get(name)
    if not isinstance(found, Suite):
        raise ValueError(f"suite {name}: what is registered is a {type(found).__name__}, not a Suite")
    if found.id != name:
        raise ValueError(f"suite {name}: what is registered under this id calls itself {found.id}")
    return found


def find_suites(names: Sequence[str]) -> tuple[Suite, ...]:
    """Each of these, once. Raises ValueError as `find_suite` does, and where two have one id."""
    found = tuple(map(find_suite, names))
    ids = [suite.id for suite in found]
    twice = [id for id in ids if ids.count(id) > 1]
    if twice:
        raise ValueError(f"suite {twice[0]} is named twice; name it once")
    return found
