"""The words of an index's full segments in one file, sorted, so that a search looks through each word once and not once for each segment.

Where a word's stretch of postings lies in each segment stands there too; the postings stay where they are. It is made from the segments, as
they are from the store, and can be deleted at any time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..rollout.store.own_files import own_file
from ..rollout.store.reading import count_rows
from .database import PARQUET, Database, named
from .index import FOLDER, FREE_TEXT, FULL, LONGEST_WORD, MOST_TEXT, PARTIAL, WORD_COLUMNS, IndexSegment, coverage

NAME = "vocabulary.parquet"
"""Its name in the folder of an index."""
DUE = 8
"""Full segments beyond it from which it is made again."""
TOGETHER = 1 << 16
"""Words in a row group."""
SORTED_AT_ONCE = 1 << 19
"""Words of segments that are in memory together while it is made, about."""
_KEPT = f"strlen(word) <= {4 * LONGEST_WORD}"
"""Of a word in a segment's file, which may be anybody's: that it is no longer, in bytes, than the index keeps them."""
_MADE_OF = b"burnish.segments"
"""Under which name the file says of which segments it is."""


def word_files(store: Path, segments: Sequence[IndexSegment]) -> list[str]:
    """The files, of the columns `index.WORD_COLUMNS`, that hold every word of some segments of a store, and maybe words of others."""
    within = _within(store, segments)
    rest = [part.words for segment in segments if segment.number not in within for part in segment.words]
    return [str(store / FOLDER / NAME), *rest] if within else rest


def is_due(store: Path) -> bool:
    """Whether so many full segments lie beyond the vocabulary of a store that it is to be made again."""
    segments = coverage(store).segments
    return _beyond(store, segments) >= DUE


def build_vocabulary(store: Path, db: Database) -> None:
    """Make the vocabulary of a store's full segments.

    Raises ValueError when it cannot be written, or a segment cannot be read.

    Example: `build_vocabulary(Path("runs/NAME/episodes"), Database())`.
    """
    home = store / FOLDER
    try:
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=home))
        try:
            _write(partial / NAME, [segment for segment in coverage(store).segments if segment.episodes >= FULL], db)
            (partial / NAME).replace(home / NAME)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"no index can be kept in {home}: {error.strerror or error}") from error


def _write(file: Path, segments: Sequence[IndexSegment], db: Database) -> None:
    made_of = {str(segment.number): segment.made for segment in segments}
    schema = WORD_COLUMNS.with_metadata({_MADE_OF: json.dumps(made_of).encode()})
    files = [part.words for segment in segments for part in segment.words]
    _check_text(files, db)
    question = (
        f"SELECT {', '.join(WORD_COLUMNS.names)} FROM {PARQUET}) WHERE word >= ? AND (? OR word < ?) AND {_KEPT} ORDER BY word, first"
    )
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["word"]) as out:
        for low, high in pairwise(["", *_borders(files, db), None]):
            for batch in db.batches(question, [named(files), low, high is None, high or ""], TOGETHER):
                out.write_table(pa.Table.from_batches([batch]).cast(schema))


def _check_text(files: Sequence[str], db: Database) -> None:
    """Raise ValueError when the words that would be sorted take more than their files can be meant to hold: one may repeat in each row."""
    asked = f"SELECT coalesce(sum(strlen(word)), 0)::HUGEINT AS bytes FROM {PARQUET}) WHERE {_KEPT}"
    text = int(db.ask(asked, [named(files)])[0]["bytes"]) if files else 0
    if text > max(FREE_TEXT, MOST_TEXT * sum(Path(file).stat().st_size for file in files)):
        home = Path(files[0]).parents[1]
        raise ValueError(f"{home}: its words take {text} bytes, more than {MOST_TEXT} times their files; remove it")


def _borders(files: Sequence[str], db: Database) -> list[str]:
    """Words in order, between which there are about as many of all files as are sorted at once."""
    rows = [pq.read_metadata(file).num_rows for file in files]
    pieces, most = sum(rows) // SORTED_AT_ONCE, max(rows, default=0)
    if pieces < 1:
        return []
    places = sorted({most * i // (pieces + 1) for i in range(1, pieces + 1)})
    asked = f"SELECT DISTINCT word FROM {PARQUET}, file_row_number=true) WHERE file_row_number IN (SELECT unnest(?)) AND {_KEPT}"
    return sorted(row["word"] for row in db.ask(asked, [named([files[rows.index(most)]]), places]))


def _beyond(store: Path, segments: Sequence[IndexSegment]) -> int:
    within = _within(store, segments)
    return sum(segment.episodes >= FULL and segment.number not in within for segment in segments)


def _within(store: Path, segments: Sequence[IndexSegment]) -> Mapping[int, int]:
    """The segments, by number, whose words the vocabulary holds; none where it is of another segment than the one that has its number."""
    try:
        file = own_file(store, f"{FOLDER}/{NAME}")
        found = file.stat() if file else None
        made_of = _made_of(file, (found.st_size, found.st_mtime_ns)) if file and found else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return made_of if all(made_of.get(segment.number, segment.made) == segment.made for segment in segments) else {}


@lru_cache(maxsize=64)
def _made_of(file: Path, stamp: tuple[int, int]) -> Mapping[int, int]:
    """Raises ValueError for a file that is not of its form, or holds more than its size can be meant to."""
    count_rows(file, WORD_COLUMNS, "an index")
    said = json.loads((pq.read_schema(file).metadata or {})[_MADE_OF])
    return {int(number): int(made) for number, made in said.items()}
