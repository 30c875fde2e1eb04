"""The sources of a supervised phase: own rows, out of files or from a generator, and curated ones; each a stream of items and rejects.

Files are read by `envs.rows`, and `forms` says what a row must hold. No row is left out in silence: what cannot be read is a `Reject` with
its place, and whoever takes the stream decides how many of them are too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar

from ...envs.named import attributed, each_of, load_function
from ...envs.row_files import UnreadableFile, files_at
from ...envs.rows import ENDS, BadRow, Problems, read_rows, suffix_problem
from .blend import share_of
from .config import OWN, BlendConfig, RowsKind, SupervisedRows
from .curated.catalog import Catalog, Category, categories_of, find_catalog
from .forms import Conversation, Document, Item, conversation_of, read_conversation, read_document

T = TypeVar("T")

READ_DOCUMENTS: Final = ("cpt", "midtrain")
"""Kinds of phase whose rows are documents as well as conversations."""
MAX_MADE = 10_000
"""Rows that a curated source without end makes for a phase, at most; they are then seen again."""

_FIELD = re.compile(r"^([A-Za-z_][\w.\[\]]*)(?:: | (?=is |holds |has ))")


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is left out: its file and line (a row of a generator: its number), the field that is wrong ("" for the row), and why.

    Example: `Reject("talks.jsonl", 36, "messages[0]", "messages[0]: role 'boss' is unknown")`.
    """

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"

    def to_row(self) -> dict[str, Any]:
        """As a line of a rejects file."""
        return {"file": self.file, "line": self.line, "field": self.field, "reason": self.reason}


Found = Item | Reject


@dataclass(frozen=True)
class Source:
    """One source of a phase. share: of the blend. origin: what it is made of, in words. found: its items and rejects, from the beginning.

    curated: whether it is not the user's own, so that rows which do not fit a model are left out of it rather than refused.
    """

    name: str
    share: Fraction
    origin: str
    found: Callable[[], Iterator[Found]]
    curated: bool = False


def sources_of(wanted: SupervisedRows, seed: int, limit: int | None = None) -> list[Source]:
    """The sources of what a phase learns, the own rows first. limit: of what is generated; a file is always read whole.

    Raises ValueError naming a catalog or a category that is not there.
    """
    own, rows = _own(wanted, seed, limit), wanted.rows
    categories = categories_of([find_catalog(name) for name in rows.catalogs])
    chosen = categories if rows.blend is None else {name: one for name, one in categories.items() if rows.blend.curated.get(name)}
    if wanted.kind not in READ_DOCUMENTS:
        _refuse_texts(f"{wanted.called}.{'blend.curated' if rows.blend is not None else 'curated'}", chosen)
    if rows.blend is not None:
        _check_categories(wanted.called, rows.blend, categories)
        share, percents = share_of(rows.blend.own_percent) / 100, {name: share_of(p) / 100 for name, p in rows.blend.curated.items()}
    elif rows.blend_ratio is not None:
        share, percents = share_of(rows.blend_ratio), dict.fromkeys(categories, Fraction(1, len(categories)))
    else:
        return [own]
    shares = {name: (1 - share) * percent for name, percent in percents.items()}
    curated = (_curated(name, categories[name], part, wanted, seed, limit) for name, part in shares.items())
    return [replace(own, share=share), *curated]


def read_documents(place: str | Path) -> Iterator[str]:
    """The texts of files: rows `{"text": …}`, or the paragraphs of plain text.

    Raises ValueError at the end, naming file, line and field of every row that is unfit.
    """
    return (item.text for item in _only(found_in(str(place), "cpt")) if isinstance(item, Document))


def read_conversations(place: str | Path) -> Iterator[Conversation]:
    """Rows `{"messages": […], "tools": […]}`, messages as OpenAI has them. Raises ValueError at the end, as `read_documents` does."""
    return (item for item in _only(found_in(str(place), "sft")) if isinstance(item, Conversation))


def found_in(place: str, kind: RowsKind) -> Iterator[Found]:
    """The items of a place, and what is unfit; see `found_rows`."""
    return found_rows(place, _reader(kind), prose=kind in READ_DOCUMENTS)


def _reader(kind: RowsKind) -> Callable[[Mapping[str, Any], str], Item]:
    return read_document if kind in READ_DOCUMENTS else read_conversation


def found_rows(place: str, read: Callable[[Mapping[str, Any], str], T], prose: bool = False) -> Iterator[T | Reject]:
    """What `read` makes of every row of a place; it raises ValueError, `field: what is wrong`, for a row that is unfit.

    A file that cannot be read, or not to its end, is one reject where it goes wrong. Raises ValueError when a file is not there, cannot be
    had, or is of an unknown suffix.
    """
    files = files_at(place)
    for file in files:
        unfit = suffix_problem(file, prose)
        if unfit is not None:
            raise ValueError(unfit)
    return chain.from_iterable(_found_in_file(file, read, prose) for file in files)


def _found_in_file(file: str, read: Callable[[Mapping[str, Any], str], T], prose: bool) -> Iterator[T | Reject]:
    last = 0
    try:
        for row in read_rows(file, prose):
            last = row.number
            if isinstance(row, BadRow):
                yield rejected(row.problem, row.where)
                continue
            try:
                made = read(row.value, row.where)
            except ValueError as error:
                yield rejected(str(error), row.where)
                continue
            yield made
    except UnreadableFile as error:
        number, problem = _place_in(file, str(error), last)
        yield rejected(problem + ENDS, f"{file}:{number}")


def _place_in(file: str, said: str, last: int) -> tuple[int, str]:
    """The line that `file:line: problem` names, or the one after the last that was read, and the problem alone."""
    rest = said.removeprefix(f"{file}:")
    number, _, problem = rest.partition(":")
    return (int(number), problem.strip()) if number.isdigit() else (last + 1, rest.strip())


def rejected(problem: str, where: str) -> Reject:
    """A reject out of `field: what is wrong` and `file:line`. Example: `rejected("text: is empty", "a.jsonl:3")`."""
    file, _, line = where.rpartition(":")
    named = _FIELD.match(problem)
    return Reject(file, int(line), named[1] if named else "", problem)


def _only(found: Iterable[T | Reject]) -> Iterator[T]:
    """The items; raises ValueError at the end when there was a reject."""
    problems = Problems()
    for one in found:
        if isinstance(one, Reject):
            problems.add(str(one))
        else:
            yield one
    problems.check()


def _own(wanted: SupervisedRows, seed: int, limit: int | None) -> Source:
    places, function = wanted.rows.places, wanted.rows.generate
    if function is None:
        return Source(OWN, Fraction(1), ", ".join(places), lambda: (one for place in places for one in found_in(place, wanted.kind)))
    return Source(OWN, Fraction(1), function, lambda: _generated(function, wanted, seed, limit))


def _generated(function: str, wanted: SupervisedRows, seed: int, limit: int | None) -> Iterator[Item]:
    """What a generator gives. It is code of the user's own: raises ValueError naming the example that is unfit."""
    field, count = f"{wanted.called}.generate", wanted.examples if limit is None else min(limit, wanted.examples)
    make = load_function(function, field)
    with attributed(f"{field}: {function}"):
        made = make(seed, count, **wanted.rows.args)
    if not isinstance(made, Iterable):
        raise ValueError(f"{field}: {function} must give an iterable of examples, not {type(made).__name__}")
    for i, example in enumerate(islice(each_of(made, f"{field}: {function}"), limit)):
        where = f"{field}: {function}, example:{i}"
        if isinstance(example, str):
            if wanted.kind == "sft":
                raise ValueError(f"{where}: must be a conversation, not a text")
            yield Document(example, where)
            continue
        if wanted.kind == "cpt" and not isinstance(example, Mapping | list | tuple):
            raise ValueError(f"{field}: {function} must give strings, not {type(example).__name__}")
        try:
            row: Mapping[str, Any] = example if isinstance(example, Mapping) else {"messages": example}
            yield conversation_of(row.get("messages"), row, where)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _curated(called: str, of: Category, share: Fraction, wanted: SupervisedRows, seed: int, limit: int | None) -> Source:
    """The source of a category. Its name is a folder's, too: what a blend calls it, without a slash."""
    catalog, name = of
    made = min(MAX_MADE, int(share * wanted.samples) + 1)
    count = made if limit is None else min(limit, made)

    def found() -> Iterator[Found]:
        return found_curated(catalog, name, seed, count if share else 0, wanted.kind)

    return Source(called.replace("/", "--"), share, f"{catalog.id} {name}: {catalog.sets[name].about}", found, curated=True)


def found_curated(catalog: Catalog, name: str, seed: int, count: int, kind: RowsKind = "sft") -> Iterator[Found]:
    """The items of one set of a catalog, read for a kind of phase: all of a file's, `count` of those that are made."""
    chosen = catalog.sets[name]
    if chosen.file is not None:
        yield from found_in(str(chosen.file), kind)
        return
    assert chosen.make is not None
    with attributed(f"{catalog.id} {name}"):
        made = chosen.make(seed, count)
    for i, row in enumerate(each_of(made, f"{catalog.id} {name}")):
        yield _reader(kind)(row, f"{catalog.id} {name}:{i}")


def holds_texts(catalog: Catalog, name: str) -> bool:
    """Whether a set is of texts, and not of conversations: told by its first row that can be read."""
    items = (one for one in found_curated(catalog, name, 0, 1, "cpt") if not isinstance(one, Reject))
    return isinstance(next(items, None), Document)


def _refuse_texts(field: str, chosen: Mapping[str, Category]) -> None:
    """Raises ValueError naming a set of texts, where conversations are learned."""
    texts = next((called for called, one in chosen.items() if holds_texts(*one)), None)
    if texts is not None:
        catalog, _ = chosen[texts]
        fix = "leave it out of blend.curated" if field.endswith("blend.curated") else "name categories of conversations by blend.curated"
        raise ValueError(f"{field}: {texts} of {catalog.id} holds texts, which cpt and midtrain learn from; {fix}")


def _check_categories(called: str, blend: BlendConfig, categories: Mapping[str, Category]) -> None:
    unknown: Sequence[str] = [name for name in blend.curated if name not in categories]
    if unknown:
        catalogs = list(dict.fromkeys(catalog.id for catalog, _ in categories.values()))
        have, they = ("has", "it has") if len(catalogs) == 1 else ("have", "they have")
        raise ValueError(
            f"{called}.blend.curated: {' and '.join(catalogs)} {have} no category {unknown[0]!r}; {they} {', '.join(categories)}"
        )
