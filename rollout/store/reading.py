"""Reads the Parquet files of run folders. Whoever made one may have meant it to fill a memory, so rows come in small batches, of columns
that are known, and a file that is not of that form is named with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...envs.column_sizes import check_values, dictionary_columns, value_bytes
from ...envs.parquet_footer import RowGroup, column_chunks
from ...envs.rows import MAX_VALUES
from ...envs.types import Bool, Float32, Int32
from ...rpc.payload import more_values
from .episodes import MEASURED, SCHEMA

BATCH_ROWS, BATCH_BYTES = 16, 256 << 20
"""What is held of a file at once: a compressed file of a few kilobytes may claim gigabytes."""
ROW_BYTES = 1 << 10
"""What a row takes as Python holds it, its values aside."""
MAY_LACK = {"tools", "actor", "node"}
"""Columns that files of earlier schemas do not have, of schema 2 none and of schema 3 not the last two: they read as nulls."""
MAY_BE_NULL = {"reward", "parts", "turn_parts", "credit", "failure", "culprit", "detail", "truncation", *MAY_LACK, *MEASURED}
"""Columns of `SCHEMA` that an episode may have nothing in."""

Sampled = tuple[Int32, Bool, Float32]
"""Of one trajectory: token ids, which of them were sampled, and the log-probabilities that they were sampled at."""


def episode_columns(*names: str) -> pa.Schema:
    """Some columns of `SCHEMA`, for `stored_rows`. Example: `episode_columns("task", "reward")`."""
    return pa.schema([pa.field(name, SCHEMA.field(name).type, name in MAY_BE_NULL) for name in names])


def stored_rows(file: Path, columns: pa.Schema, what: str, most: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, of the given columns only.

    columns: with their types, and whether one may hold nulls. what: the rows are, for errors. most: bytes that all rows together may take,
    for a caller that keeps them.

    Raises ValueError naming the file when it cannot be read, lacks a column, holds one of another type or nulls where none belong, or is
    larger than that.

    Example: `stored_rows(file, episode_columns("task", "reward"), "stored episodes")`.
    """
    try:
        yield from _rows(file, columns, most)
    except (pa.ArrowException, MemoryError, OSError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{file}: cannot be read as {what}: {said[0]:.300}") from None


def rows_while_there(file: Path, columns: pa.Schema, most: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file of a store, none when it is gone: a run takes steps back, and keeps so many. A file that goes while it is read is
    read to its end. most: as of `stored_rows`. Raises ValueError as that does.

    Example: `rows_while_there(file, episode_columns("task", "reward"))`.
    """
    try:
        yield from stored_rows(file, columns, "stored episodes", most)
    except ValueError:
        if os.path.lexists(file):
            raise


def check_store(file: Path) -> int:
    """What the messages in a file of a store take in memory, in bytes, as it says.

    Raises ValueError naming one that cannot be read, lacks a column of `SCHEMA`, holds one of another type, or more rows or values than a
    file of its size can be meant to have.
    """
    try:
        return _checked_store(file, file.stat().st_mtime_ns)
    except (pa.ArrowException, MemoryError, OSError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{file}: cannot be read as stored episodes: {said[0]:.300}") from None


@lru_cache(maxsize=16384)
def _checked_store(file: Path, changed: int) -> int:
    metadata, groups = _checked(file, SCHEMA)
    place = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index("messages")
    return sum(max(0, group.chunks[place].unpacked) for group in groups)


def count_rows(file: Path, columns: pa.Schema, what: str) -> int:
    """How many rows a Parquet file has. columns, what: as of `stored_rows`.

    Raises ValueError naming the file as `check_store` does.
    """
    try:
        return int(_checked(file, columns)[0].num_rows)
    except (pa.ArrowException, MemoryError, OSError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{file}: cannot be read as {what}: {said[0]:.300}") from None


def check_row(row: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first column of `SCHEMA` in a row that is null, or holds nulls, and may not.

    Example: `check_row({"reward": None, "messages": "[]"})`.
    """
    if {"reward", "failure"} <= row.keys() and row["reward"] is None and row["failure"] is None:
        raise ValueError(f"the stored episodes cannot be read: episode {row.get('episode')!r:.80} has neither a reward nor a failure")
    for name in (name for name in SCHEMA.names if name in row):
        if (row[name] is None and name not in MAY_BE_NULL) or (name in ("parts", "labels", "metrics", "turns") and _holds_null(row[name])):
            raise ValueError(f"the stored episodes cannot be read: episode {row.get('episode')!r:.80}: {name} is null")


def _holds_null(value: Any) -> bool:
    """Whether something within a value is null."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(item is None or _holds_null(item) for item in items)


def check_tokens(row: Mapping[str, Any]) -> None:
    """Raise ValueError naming the column of a whole row whose values are not as many as its `lengths` say, or are null."""
    lengths, names = row["lengths"], ("token_ids", "mask", "version", "sampler_logprobs", *MEASURED)
    whole = sum(lengths) if all(type(length) is int and length > 0 for length in lengths) else -1
    for name in names:
        values = row[name]
        if values is not None and (len(values) != whole or any(value is None for value in values)):
            raise ValueError(f"the stored episodes cannot be read: episode {row['episode']!r:.80}: {name} is not as long as lengths says")


def stored_value(said: str) -> Any:
    """What a column of JSON holds. Raises ValueError or RecursionError when it is none, or holds more values than a row of data may.

    Example: `stored_value('[{"role": "user", "content": "hi"}]')`.
    """
    if more_values(said, MAX_VALUES):
        raise ValueError(f"holds more than {MAX_VALUES} JSON values")
    return json.loads(said)


def stored_note(file: Path, key: str, what: str) -> bytes:
    """What a Parquet file says of itself under a key. Raises ValueError naming the file when it cannot be read, or says nothing."""
    try:
        note = (pq.read_schema(file).metadata or {}).get(key.encode())
    except (pa.ArrowException, MemoryError, OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as {what}: {(str(error).splitlines() or ['?'])[0]:.300}") from None
    if note is None:
        raise ValueError(f"{file}: cannot be read as {what}: it says nothing under {key!r}")
    return bytes(note)


def stored_sequences(row: Mapping[str, Any], vocabulary: int) -> list[Sampled]:
    """The trajectories of a row with `lengths`, `token_ids`, `mask` and `sampler_logprobs`, for a model of so many tokens.

    Raises ValueError naming the field that does not fit the others, or the model.
    """
    lengths = [length or 0 for length in row["lengths"]]
    if any(length < 1 for length in lengths):
        raise ValueError("lengths: a sequence has at least one token")
    kinds = {"token_ids": np.int32, "mask": np.bool_, "sampler_logprobs": np.float32}
    try:
        whole: dict[str, np.ndarray] = {name: np.array(row[name], kind) for name, kind in kinds.items()}
    except TypeError:
        raise ValueError("token_ids: one of them is null") from None
    for name, values in whole.items():
        if len(values) != sum(lengths):
            raise ValueError(f"{name}: {len(values)} values, but lengths says {sum(lengths)}")
    ids = whole["token_ids"]
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise ValueError(f"token_ids: {ids.min()} to {ids.max()}, but the model's tokens are 0 to {vocabulary - 1}")
    if not np.isfinite(whole["sampler_logprobs"]).all():
        raise ValueError("sampler_logprobs: a value is not finite")
    ends = np.cumsum(lengths)[:-1]
    split = list(zip(*(np.split(values, ends) for values in whole.values()), strict=True)) if lengths else []
    if any(mask[0] for _, mask, _ in split):
        raise ValueError("mask: the first token of a sequence cannot be sampled")
    return split


def _rows(file: Path, columns: pa.Schema, most: int | None) -> Iterator[dict[str, Any]]:
    used, (metadata, _), found = 0, _checked(file, columns), pq.read_schema(file).names
    there = [name for name in columns.names if name in found]
    lacking = dict.fromkeys(name for name in columns.names if name not in found)
    with pq.ParquetFile(file, read_dictionary=dictionary_columns(metadata)) as stored:
        for batch in stored.iter_batches(batch_size=BATCH_ROWS, columns=there):
            claimed = sum(map(value_bytes, batch.columns))
            if claimed > BATCH_BYTES:
                raise ValueError(f"{BATCH_ROWS} of its rows take {claimed} bytes, more than {BATCH_BYTES}")
            used += claimed + ROW_BYTES * batch.num_rows
            if most is not None and used > most:
                raise ValueError(f"its rows take more than {most} bytes together")
            for column in columns:
                if not column.nullable and batch.column(column.name).null_count:
                    raise ValueError(f"column {column.name!r} holds nulls")
            yield from ({**row, **lacking} for row in batch.to_pylist(maps_as_pydicts="lossy"))


def _checked(file: Path, columns: pa.Schema) -> tuple[pq.FileMetaData, list[RowGroup]]:
    """What a file that has these columns says of itself, and of its columns in each row group."""
    _check_columns(pq.read_schema(file), columns)
    metadata = pq.read_metadata(file)
    with file.open("rb") as stream:
        groups = column_chunks(stream)
    check_values(metadata, groups, file.stat().st_size)
    return metadata, groups


def _check_columns(found: pa.Schema, wanted: pa.Schema) -> None:
    for column in wanted:
        there = found.get_all_field_indices(column.name)
        if not there and column.name in MAY_LACK:
            continue
        if not there:
            raise ValueError(f"it has no column {column.name!r}, as an earlier burnish wrote them")
        if len(there) > 1:
            raise ValueError(f"it has several columns {column.name!r}")
        kind = found.field(there[0]).type
        if not kind.equals(column.type):
            raise ValueError(f"column {column.name!r} is {str(kind)[:60]}, not {column.type}")
