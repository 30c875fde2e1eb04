"""Reads the Parquet files of run folders. Whoever made one may have meant it to fill a memory, so rows come in small batches, of columns
that are known, and a file that is not of that form is named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...envs.types import Bool, Float32, Int32
from .episodes import MEASURED, SCHEMA

BATCH_ROWS, BATCH_BYTES = 16, 256 << 20
"""What is held of a file at once: a compressed file of a few kilobytes may claim gigabytes."""
ROW_BYTES = 1 << 10
"""What a row takes as Python holds it, its values aside."""
MAY_BE_NULL = {"reward", "parts", "turn_parts", "credit", "failure", "culprit", "detail", "truncation", *MEASURED}
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
    used = 0
    with pq.ParquetFile(file) as stored:
        _check_columns(stored.schema_arrow, columns)
        for batch in stored.iter_batches(batch_size=BATCH_ROWS, columns=columns.names):
            if batch.nbytes > BATCH_BYTES:
                raise ValueError(f"{BATCH_ROWS} of its rows take {batch.nbytes} bytes, more than {BATCH_BYTES}")
            used += batch.nbytes + ROW_BYTES * batch.num_rows
            if most is not None and used > most:
                raise ValueError(f"its rows take more than {most} bytes together")
            for column in columns:
                if not column.nullable and batch.column(column.name).null_count:
                    raise ValueError(f"column {column.name!r} holds nulls")
            yield from batch.to_pylist(maps_as_pydicts="lossy")


def _check_columns(found: pa.Schema, wanted: pa.Schema) -> None:
    for column in wanted:
        there = found.get_all_field_indices(column.name)
        if not there:
            raise ValueError(f"it has no column {column.name!r}, as an earlier burnish wrote them")
        if len(there) > 1:
            raise ValueError(f"it has several columns {column.name!r}")
        kind = found.field(there[0]).type
        if not kind.equals(column.type):
            raise ValueError(f"column {column.name!r} is {str(kind)[:60]}, not {column.type}")
