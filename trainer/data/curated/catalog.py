"""Catalogs of curated data: named, versioned, digested sets of conversations or texts, each with a data card, that a phase blends its own
rows with. What a set holds shows in its rows; texts are for phases that read documents.

A catalog comes from a distribution that lists it under the entry-point group `burnish.catalogs`, by an id such as `burnish/general-v1`, or
from a folder with a `catalog.toml`:

    id = "my-team/support-v1"

    [sets.answers]
    file = "answers.jsonl"                # rows as for [sft], or texts as for [cpt], in this folder
    sha256 = "9f86d081884c7d65…"          # of the file; `burnish data catalog FOLDER` says what it is
    about = "Answers of the support team, 2025, checked by two of them."
    licence = "CC-BY-4.0"

Nothing is fetched: a set is a file beside the catalog or is made by code of the distribution. What a version holds never changes: a file is
compared with its digest before it is read, and what code makes is held to `PROBE_ROWS` rows whose digest is part of the set.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ....envs.pydantic_words import first_error
from ....envs.registry import ID_PATTERN, Registry, check_id
from ....envs.row_files import digest_of
from ....envs.rows import suffix_problem
from ....envs.toml_text import read_toml

PROBE_ROWS: Final = 100
"""Rows of seed 0 that the digest of a made set is taken of."""
CATALOG_FILE: Final = "catalog.toml"
_CATEGORY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN: Final = ("own", "held_out")
LARGEST: Final = 1_000_000
"""Bytes of a catalog file."""

Make = Callable[[int, int], Iterator[Mapping[str, Any]]]
"""`make(seed, count)` gives `count` rows `{"messages": […]}` or `{"text": …}`; equal arguments give equal rows, no two seeds the same."""


@dataclass(frozen=True)
class CuratedSet:
    """One set of a catalog. about: its data card in a sentence or more. sha256: of the file, or of the first made rows.

    Exactly one of make, which gives as many rows as asked, and file, which has as many as it has.
    """

    about: str
    licence: str
    sha256: str
    make: Make | None = None
    file: Path | None = None

    @property
    def digest(self) -> str:
        """What `sha256` has to be. Raises ValueError for a file that unpacks to far more than text does, or cannot be read."""
        if self.file is not None:
            return digest_of(str(self.file)).hex()
        assert self.make is not None
        lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in self.make(0, PROBE_ROWS))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Catalog:
    """A catalog by its id, and its sets by the names of their categories.

    Raises ValueError for a name that is no plain word, or that something else in a phase's folder of data has.
    """

    id: str
    sets: Mapping[str, CuratedSet]

    def __post_init__(self) -> None:
        for name in self.sets:
            if not _CATEGORY.fullmatch(name) or name in _TAKEN:
                raise ValueError(
                    f"sets.{name!r}: a set is called by letters, digits, - and _, beginning with a letter, and not {' or '.join(_TAKEN)}"
                )


Category = tuple[Catalog, str]
"""A catalog and the name of one of its sets."""


def categories_of(catalogs: Sequence[Catalog]) -> dict[str, Category]:
    """Every set of these catalogs by what a blend calls it: its name, and `ID:NAME` where two have one of that name.

    Raises ValueError when two catalogs have one id.
    """
    ids, names = Counter(one.id for one in catalogs), Counter(name for one in catalogs for name in one.sets)
    twice = next((id for id, count in ids.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two of the catalogs are called {twice}; name each once, or give one of them another id in its {CATALOG_FILE}")
    return {name if names[name] == 1 else f"{one.id}:{name}": (one, name) for one in catalogs for name in one.sets}


CATALOGS: Registry[Catalog] = Registry("catalog", "burnish.catalogs")


class _SetEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    about: str = Field(min_length=1)
    licence: str = Field(min_length=1)


class _CatalogFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    sets: dict[str, _SetEntry] = Field(min_length=1)


def find_catalog(name: str, check: bool = True) -> Catalog:
    """The catalog of an id, or in a folder. check: compare every set with its digest.

    Raises ValueError when there is none, its file is unfit, or a set is not what its digest says.
    """
    catalog = _registered(name) if ID_PATTERN.match(name) and not os.path.isfile(Path(name) / CATALOG_FILE) else read_catalog(Path(name))
    if check:
        for category, one in catalog.sets.items():
            if one.digest != one.sha256:
                raise ValueError(f"catalog {name}: {_other_digest(category, one)}")
    return catalog


def _other_digest(category: str, one: CuratedSet) -> str:
    """What is said of a set that declares no digest, or another than it has, and what to do."""
    where = f"[sets.{category}] of its {CATALOG_FILE}" if one.file is not None else "its set"
    write = f'write sha256 = "{one.digest}" below {where}'
    if not one.sha256:
        return f"{category} has no sha256; {write}"
    return f"{category} is not of sha256 {one.sha256[:12]}…: a changed set needs a new version; give the catalog another id, and {write}"


def _registered(id: str) -> Catalog:
    return CATALOGS.get(id, f"a folder with a {CATALOG_FILE} is one of your own")


def read_catalog(folder: Path) -> Catalog:
    """The catalog of a folder, its files not yet compared with their digests. Raises ValueError naming the file and what is wrong."""
    file = folder / CATALOG_FILE
    if not os.path.isfile(file):
        raise ValueError(f"catalog {folder}: is no id (namespace/name-v1) and no folder with a {CATALOG_FILE}")
    said = read_toml(file, LARGEST)
    try:
        data = _CatalogFile.model_validate(said, strict=True)
        check_id(data.id, "catalog")
    except ValidationError as error:
        raise ValueError(f"{file}: {first_error(error, _CatalogFile)}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    sets = {name: _of_folder(folder, file, name, entry) for name, entry in data.sets.items()}
    try:
        return Catalog(data.id, sets)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def with_digest(one: CuratedSet) -> CuratedSet:
    """The set with the digest of what it is now, for whoever makes a catalog."""
    return replace(one, sha256=one.digest)


def _of_folder(folder: Path, file: Path, name: str, entry: _SetEntry) -> CuratedSet:
    data = (folder / entry.file).resolve()
    if not data.is_relative_to(folder.resolve()):
        raise ValueError(f"{file}: sets.{name}.file: {entry.file} lies outside the folder")
    unfit = suffix_problem(entry.file, prose=True)
    if unfit is not None:
        raise ValueError(f"{file}: sets.{name}.file: {unfit}")
    if not data.is_file():
        raise ValueError(f"{file}: sets.{name}.file: {entry.file} is not a file")
    return CuratedSet(entry.about, entry.licence, entry.sha256 or "", file=data)
