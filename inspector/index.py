"""An index over a store of episodes, so that a list of a million of them is filtered, sorted and searched at once.

The files of a store hold everything, tokens above all; a list shows little of it. The index, `.index/` beside them, holds that little in
segments of many files each: a row per episode (`rows.parquet`), every word that was said (`words-N.parquet`) with the episodes that hold it
(`words-N.postings`), and which files they cover, as these were (`segment.json`); and the words of all of them once more, together
(`vocabulary.py`). It is made by who looks, never by the run, and holds nothing that could not be made again. What it does not cover, or
covers as it no longer is, is read from the store.

    store, index = Path("runs/NAME/episodes"), Database()
    while build_segment(store, index): ...
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..rewards.rubric import EXPLANATION
from ..rollout.store.episodes import SCHEMA
from ..rollout.store.moments import Moment, moments
from ..rollout.store.own_files import own_file, read_whole
from ..rollout.store.reading import check_store, count_rows
from .database import PARQUET, Database, named
from .postings import PART, WordsPart, pack

FOLDER = ".index"
"""Where it lies in a store. Readers of Parquet folders pass over names that begin with a dot."""
VERSION = 6
"""Of what a segment holds: one of another is made again."""
FULL = 16_384
"""Episodes from which a segment is left as it is; a smaller one is made again together with what came after it."""
WORDS_AT_ONCE = 16 << 20
"""Bytes of conversations whose words are held in memory together, about."""
LONGEST_WORD = 200
"""Characters of a word that the index keeps."""
ROWS_TOGETHER, WORDS_TOGETHER = 2048, 8192
"""Episodes and words in a row group: what is read for one of them."""
PARTIAL, ABANDONED_S = "partial-", 3600.0
"""How folders begin that are being written, and after how long they are no longer."""
RESTED_NS = 1_000_000_000
"""How long a folder must not have changed for its time of change to tell it apart from what it will be."""
FREE_TEXT, MOST_TEXT = 64 << 20, 32
"""Bytes of text that the rows of a segment may hold, or times the size of the files that they are of."""
RANGES = 32
"""Of episodes whose files are gone, that a segment may have; one with more is made again, and one of which more than half is gone."""
ROOM = 1 << 24
"""Episodes that a segment may have: an episode's number is its segment's times this, and its place."""

SUMMARY = (
    "phase, step, split, mode, episode, task, environment, sample, engine, reward, failure, culprit, truncation, "
    f"map_from_entries(list_filter(map_entries(labels), lambda one: NOT ends_with(one.key, '.{EXPLANATION}'))) AS labels, sampled_tokens, "
    "context_tokens, seconds, oldest_version, newest_version, len(turns)::INTEGER AS turns, "
    "list_sum(advantages) / nullif(sampled_tokens, 0) AS advantage"
)
"""What lists show of an episode, out of the store's columns; of the advantages, which are 0 where nothing was sampled, their mean. Why
scorers gave what they gave is for its own page."""
_AS_STORED = (
    "phase", "step", "split", "mode", "episode", "task", "environment", "sample", "engine", "reward", "failure", "culprit", "truncation",
    "labels", "sampled_tokens", "context_tokens", "seconds", "oldest_version", "newest_version",
)  # fmt: skip
_TEXT = " + ".join(f"coalesce(strlen({name}), 0)" for name in _AS_STORED if SCHEMA.field(name).type == pa.string())
_TEXT += " + coalesce(list_sum(list_transform(map_entries(labels), lambda one: strlen(one.key) + coalesce(strlen(one.value), 0))), 0)"
_TEXT += " + coalesce(list_sum(list_transform(map_keys(parts), lambda one: strlen(one))), 0)"
ROW_COLUMNS = pa.schema(
    [
        *[("id", pa.int64()), *(SCHEMA.field(name) for name in _AS_STORED), ("turns", pa.int32()), ("advantage", pa.float64())],
        *[SCHEMA.field("parts"), ("called", pa.list_(pa.string()))],
    ]
)
"""Of `rows.parquet`."""
WORD_COLUMNS = pa.schema([("word", pa.string()), ("first", pa.int64()), ("start", pa.int64()), ("size", pa.int32())])
"""Of `words-N.parquet`."""
_FORM = (
    r'\{"role":"\w+","content":|,"tool_calls":|\{"id":"[^"]*","type":"function","function":\{"name":'
    r'|,"arguments":|,"tool_call_id":"[^"]*"|,"name":'
)
"""What of stored messages is form and was not said. A quote inside a text has a backslash before it, so no text holds any of it."""
_ESCAPES = r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
SAID = f"lower(regexp_replace(regexp_replace(messages, '{_FORM}', ' ', 'g'), '{_ESCAPES}', ' ', 'g'))"
"""What was said in an episode, in small letters, without the form and the escapes of JSON."""
_STRING = r'(?:[^"\\]|\\.)*'
_CALL = rf'\{{"id":"{_STRING}","type":"function","function":\{{"name":"({_STRING})"'
_ANSWER = rf'\{{"role":"tool","content":"{_STRING}"(?:,"tool_call_id":"{_STRING}")?,"name":"({_STRING})"'
LONGEST_NAME = 200
"""Characters of a name that can be chosen by, of a tool or of `KINDS`."""
CALLED = (
    """CASE WHEN contains(messages, '"tool_calls":[') OR contains(messages, '{"role":"tool"') THEN list_distinct(list_filter(list_concat("""
    f"regexp_extract_all(messages, '{_CALL}', 1), regexp_extract_all(messages, '{_ANSWER}', 1)), "
    f"lambda one: length(one) <= {LONGEST_NAME})) ELSE []::VARCHAR[] END"
)
"""The names, as JSON writes them, of the tools that were called in an episode, or answered: some are called in plain text. Arguments of a
call that have the form of another count as one."""
_TEXT += f" + coalesce(list_sum(list_transform({CALLED}, lambda one: strlen(one))), 0)"
"""Bytes of the text in a row, which the file holds once where it repeats."""
KINDS = ("failure", "truncation", "culprit", "engine", "part")
"""What each episode has one of a few kinds of, or, of the parts of its reward, several."""
MOST_KINDS = 200
"""Kinds of each that are offered to be chosen."""
NARROWED = ("parts", "called")
"""Columns of the index, beside `SUMMARY`, that lists are narrowed by and do not show."""
WORDS = r"'[\p{L}\p{M}\p{N}_]+'"
"""A word: letters, digits and what combines with them."""
_SEGMENT, LAST = re.compile(r"\d{6}"), 999_999
Stamp = tuple[int, int]
"""Of a file: bytes, and when it was written, in nanoseconds. A file that is replaced has another."""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file of the store as a segment covers it: as it was, and the numbers of its episodes."""

    stamp: Stamp
    first: int
    episodes: int


@dataclass(frozen=True, slots=True)
class IndexSegment:
    """A part of the index. files: of the store, by name, that it covers. episodes: how many it was made of. gone: the numbers of those
    whose files are gone since, the first and the last of each range. kinds: of `KINDS`, those among all of them. made: when, in
    nanoseconds, which tells it apart from another that had its number."""

    folder: Path
    files: tuple[str, ...]
    episodes: int
    kinds: Mapping[str, tuple[str, ...]]
    words: tuple[WordsPart, ...]
    made: int
    gone: tuple[tuple[int, int], ...] = ()

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def rows_file(self) -> str:
        return str(self.folder / "rows.parquet")


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of a store its index covers. moments: all there are. rest: files that the index does not cover, the latest first, with their
    sizes. whole: bytes of all files."""

    moments: tuple[Moment, ...]
    segments: tuple[IndexSegment, ...]
    rest: Mapping[Path, int]
    whole: int

    @property
    def bytes(self) -> int:
        """What the index does not cover."""
        return sum(self.rest.values())

    def beyond(self, most: int | None) -> list[str]:
        """The latest of the files that the index does not cover, until they are so large; None for all of them."""
        before = accumulate(self.rest.values(), initial=0)
        return [str(file) for file, size in zip(self.rest, before, strict=False) if most is None or size < most]


def coverage(store: Path) -> Coverage:
    """What the index of a store covers now."""
    written = last_change(store)  # files appear under their names, so a folder that has rested has no news
    if written is None:
        return Coverage((), (), {}, 0)
    if time.time_ns() - written < RESTED_NS:
        return _coverage(store)
    return _rested(store, written)


def last_change(store: Path) -> int | None:
    """When files of a store or of its index came or went last, in nanoseconds; None where there is no store."""
    return max((folder.stat().st_mtime_ns for folder in (store, store / FOLDER) if folder.is_dir()), default=None)


@lru_cache(maxsize=64)
def _rested(store: Path, written: int) -> Coverage:
    return _coverage(store)


def _coverage(store: Path) -> Coverage:
    all_of_them = dict(moments(store))
    there = {file.name: file for file in all_of_them}
    stamps = {name: stamp for name, file in there.items() if (stamp := _stamp(file)) is not None}
    kept, covered = list[IndexSegment](), set[str]()
    for folder in _segment_folders(store):
        found = _segment(folder)
        if found is None:
            continue
        segment, as_they_were = found
        left = {name: file for name, file in as_they_were.items() if name in stamps}
        gone = _ranges([file for name, file in as_they_were.items() if name not in left])
        unchanged = covered.isdisjoint(as_they_were) and all(stamps[name] == file.stamp for name, file in left.items())
        # A run that keeps so many steps takes one away with each: what covers the others need not be made again each time.
        if unchanged and len(gone) <= RANGES and 2 * sum(last + 1 - first for first, last in gone) <= segment.episodes:
            kept.append(replace(segment, files=tuple(left), gone=gone))
            covered |= as_they_were.keys()
    rest = sorted((name for name in stamps if name not in covered), key=lambda name: (-stamps[name][1], name))
    sizes = {name: size for name, (size, _) in stamps.items()}
    return Coverage(tuple(all_of_them.values()), tuple(kept), {there[name]: sizes[name] for name in rest}, sum(sizes.values()))


def _ranges(files: Iterable[IndexedFile]) -> tuple[tuple[int, int], ...]:
    """The numbers of the episodes of some files, in their order: the first and the last of each range."""
    found = list[tuple[int, int]]()
    for file in files:
        adjoins = bool(found) and found[-1][1] + 1 == file.first
        found[-1 if adjoins else len(found) :] = [(found[-1][0] if adjoins else file.first, file.first + file.episodes - 1)]
    return tuple(found)


def build_segment(store: Path, db: Database) -> bool:
    """Cover more of a store; False when there is nothing left to cover. Segments that count no longer are removed. Where another process
    was first, or a run takes files back meanwhile, nothing may be written, and what is left to cover is to be looked at anew.

    Raises ValueError when the index cannot be written, or a file of the store cannot be read.

    Example: `build_segment(Path("runs/NAME/episodes"), Database())`.
    """
    home = store / FOLDER
    if home.is_symlink():
        raise ValueError(f"{home} is a link; an index is written into the store itself")
    there = set(_segment_folders(store))  # before it is looked at: what another process adds meanwhile stays
    found = coverage(store)
    small = [name for segment in found.segments if segment.episodes < FULL for name in segment.files]
    names = sorted({*(file.name for file in found.rest), *small})
    stamps = {name: _stamp(store / name) for name in names}  # before reading: a file that changes meanwhile is not covered
    try:
        _clear(home, there.difference(segment.folder for segment in found.segments))
        if not found.rest:
            return False
        chosen, episodes = dict[Path, int](), 0
        for name in names:
            chosen[store / name] = episodes
            check_store(store / name)
            episodes += pq.read_metadata(store / name).num_rows
            if episodes >= FULL:
                break
        _write(home, chosen, stamps, episodes, db)
    except (OSError, ValueError, pa.ArrowException) as error:
        if any(stamp is None or _stamp(store / name) != stamp for name, stamp in stamps.items()):
            return True
        if isinstance(error, OSError):
            raise ValueError(f"no index can be kept in {home}: {error.strerror or error}") from error
        if isinstance(error, pa.ArrowException):
            raise ValueError(f"the store cannot be indexed: {str(error).splitlines()[0]:.300}") from error
        raise
    return True


def _write(home: Path, files: Mapping[Path, int], stamps: Mapping[str, Stamp | None], episodes: int, db: Database) -> None:
    """Write a segment, whole or not at all. files: the number of episodes in those before each."""
    home.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=home))
    try:
        number = 1 + max((int(folder.name) for folder in _segment_folders(home.parent)), default=0)
        if number > LAST:
            raise ValueError(f"{home} has no number left for more of it; remove it")
        _fill(partial, number, files, {file.name: stamps[file.name] for file in files}, episodes, db)
        partial.rename(home / f"{number:06}")
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process took the number
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(partial: Path, number: int, files: Mapping[Path, int], stamps: Mapping[str, Stamp | None], episodes: int, db: Database) -> None:
    """Write what a segment of that number holds."""
    known = only(*SCHEMA.names, "filename", "file_row_number")
    placed = (
        f"(SELECT * FROM (SELECT {known} FROM {PARQUET}, union_by_name=true, filename=true, file_row_number=true)) "
        "JOIN (SELECT unnest(?) AS filename, unnest(?) AS first) USING (filename))"
    )
    names, firsts = [str(file) for file in files], [number * ROOM + first for first in files.values()]
    text = int(db.ask(f"SELECT coalesce(sum({_TEXT}), 0)::HUGEINT AS bytes FROM {placed}", [named(files), names, firsts])[0]["bytes"])
    if text > max(FREE_TEXT, MOST_TEXT * sum(file.stat().st_size for file in files)):
        raise ValueError(f"the store cannot be indexed: its names and labels take {text} bytes, more than {MOST_TEXT} times its files")
    listed = f"SELECT first + file_row_number AS id, {SUMMARY}, parts, {CALLED} AS called FROM {placed} ORDER BY id"
    rows = db.table(listed, [named(files), names, firsts]).cast(ROW_COLUMNS)
    pq.write_table(rows, partial / "rows.parquet", compression="zstd", row_group_size=ROWS_TOGETHER)
    kinds = {name: set(rows.column(name).unique().to_pylist()) for name in KINDS if name != "part"}
    kinds["part"] = {key for chunk in rows.column("parts").chunks for key in chunk.keys.unique().to_pylist()}
    offered = {name: sorted(_offered(values))[:MOST_KINDS] for name, values in kinds.items()}
    each = min(PART, max(1, episodes * WORDS_AT_ONCE // max(1, said_bytes(files))))
    parts = list[int]()
    for first in range(number * ROOM, number * ROOM + episodes, each):
        parts.append(min(each, number * ROOM + episodes - first))
        said = f"SELECT first + file_row_number AS id, {SAID} AS said FROM {placed} WHERE first + file_row_number BETWEEN ? AND ?"
        pairs = f"SELECT id, unnest(list_distinct(regexp_extract_all(said, {WORDS}))) AS word FROM ({said})"
        held = f"SELECT left(word, {LONGEST_WORD}) AS word, list(id ORDER BY id) AS ids FROM ({pairs}) GROUP BY 1 ORDER BY 1"
        words = db.table(held, [named(files), names, firsts, first, first + parts[-1] - 1])
        _write_words(words, WordsPart(str(partial / f"words-{len(parts) - 1}.parquet"), first, parts[-1]))
    _check_files(partial, episodes, len(parts))
    counts = np.diff([*files.values(), episodes]).tolist()
    covers = {file.name: (*(stamps[file.name] or ()), count) for file, count in zip(files, counts, strict=True)}
    record = {"version": VERSION, "files": covers, "episodes": episodes, "kinds": offered, "words": parts}
    (partial / "segment.json").write_text(json.dumps(record))


def _write_words(words: pa.Table, part: WordsPart) -> None:
    """words: each with `ids`, a list of the episodes that hold it, in order."""
    ids = words.column("ids").combine_chunks()
    offsets = np.asarray(ids.offsets, np.int64) if len(ids) else np.zeros(1, np.int64)
    postings, sizes = pack(np.asarray(ids.values, np.int64) - part.first, offsets, part.episodes)
    columns = {
        "word": words.column("word"),
        "first": np.full(len(sizes), part.first, np.int64),
        "start": np.cumsum(sizes) - sizes,
        "size": sizes.astype(np.int32),
    }
    pq.write_table(pa.table(columns), part.words, compression="zstd", row_group_size=WORDS_TOGETHER)
    part.postings.write_bytes(postings)


def only(*names: str) -> str:
    """Some columns, as far as there are, of a table that may hold others, of anything. Example: `f"SELECT {only('task')} FROM t"`."""
    return f"COLUMNS(lambda name: name IN ({', '.join(map(repr, names))}))"


def _offered(values: Iterable[str | None]) -> list[str]:
    """Of the kinds that there are, those that are offered to be chosen, as far as there is room for them."""
    return [value for value in values if value and len(value) <= LONGEST_NAME]


def said_bytes(files: Iterable[Path]) -> int:
    """What the conversations of files of a store take in memory, as the files say. Raises ValueError as `check_store` does."""
    return sum(map(check_store, files))


def _segment_folders(store: Path) -> list[Path]:
    """The newest first: where two cover the same, it is the one that counts."""
    home = store / FOLDER
    if home.is_symlink() or not home.is_dir():
        return []
    return sorted((one for one in home.iterdir() if _SEGMENT.fullmatch(one.name) and not one.is_symlink()), reverse=True)


def _segment(folder: Path) -> tuple[IndexSegment, dict[str, IndexedFile]] | None:
    """A segment, and the files that it covers as they were; None for a folder that holds none, or one of another version."""
    try:
        return _read_segment(folder, (folder / "segment.json").stat().st_mtime_ns)
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError):
        return None


@lru_cache(maxsize=4096)
def _read_segment(folder: Path, changed: int) -> tuple[IndexSegment, dict[str, IndexedFile]] | None:
    own_file(folder, "segment.json")
    record = json.loads(read_whole(folder / "segment.json"))
    if record["version"] != VERSION:
        return None
    episodes, parts, first, words = record["episodes"], record["words"], int(folder.name) * ROOM, list[WordsPart]()
    counted = _is_count(episodes, 0, ROOM) and all(_is_count(each, 1, PART) for each in parts) and sum(parts) == episodes
    if not counted or own_file(folder, "rows.parquet") is None:
        return None
    for i, each in enumerate(parts):
        words.append(WordsPart(str(folder / f"words-{i}.parquet"), first, each))
        first += each
        if any(own_file(folder, Path(file).name) is None for file in (words[-1].words, words[-1].postings)):
            return None
    files, first = dict[str, IndexedFile](), int(folder.name) * ROOM
    for name, (size, written, each) in record["files"].items():
        files[str(name)] = IndexedFile((int(size), int(written)), first, each)
        first += each
    if not all(_is_count(file.episodes, 0, episodes) for file in files.values()) or first != int(folder.name) * ROOM + episodes:
        return None
    if not files:
        return None
    _check_files(folder, episodes, len(words))
    kinds = {name: tuple(_offered(map(str, record["kinds"][name]))[:MOST_KINDS]) for name in KINDS}
    return IndexSegment(folder, tuple(files), episodes, kinds, tuple(words), changed), files


def _check_files(folder: Path, episodes: int, parts: int) -> None:
    """Raise ValueError when the files of a segment are not of its form, or hold more than their size can be meant to."""
    if count_rows(folder / "rows.parquet", ROW_COLUMNS, "an index") != episodes:
        raise ValueError(f"{folder}: rows.parquet is not of {episodes} episodes")
    for i in range(parts):
        count_rows(folder / f"words-{i}.parquet", WORD_COLUMNS, "an index")


def _is_count(value: Any, least: int, most: int) -> bool:
    """Whether a value is a whole number within bounds, and no other number of JSON's."""
    return type(value) is int and least <= value <= most


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except FileNotFoundError:  # a run that resumes took it back this very moment
        return None
    return found.st_size, found.st_mtime_ns


def _clear(home: Path, useless: Set[Path]) -> None:
    """Remove segments that count no longer, and what was left by who was stopped while writing one."""
    for folder in list(home.iterdir()) if home.is_dir() else []:
        try:
            old = folder.name.startswith(PARTIAL) and time.time() - folder.stat().st_mtime > ABANDONED_S
        except FileNotFoundError:  # whoever wrote it has given it its name
            continue
        if (old or folder in useless) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
