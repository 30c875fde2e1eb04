"""The database that answers questions about stored episodes: DuckDB in this process, held to a share of the machine."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb


@dataclass(frozen=True, slots=True)
class DatabaseLimits:
    """What the database may take. memory_mb: of memory, in megabytes, for all questions together. threads: of the processor's.
    spill: an existing folder for what does not fit into memory while a question is answered; None for one in the system's temporary folder.

    Example: `DatabaseLimits(memory_mb=1024, spill=Path("/scratch"))`.
    """

    memory_mb: int = 256
    threads: int = 2
    spill: Path | None = None


USUAL = DatabaseLimits()
PARQUET = "read_parquet(?, hive_partitioning=false"
"""How a question begins to read files (`named`); options and a `)` follow. DuckDB would take each folder on a file's path that is called
`name=value` for a column of the file, in place of one that it holds, and a folder may be called anything."""
_PATTERN = re.compile(r"[\[*?]")


def named(files: Iterable[Path | str]) -> list[str]:
    """Files as `read_parquet` is to be given them: it takes `[`, `*` and `?` in a name for a pattern of names, and a folder may be called
    anything.

    Example: `named(["[m-n]/a.parquet"]) == ["[[]m-n]/a.parquet"]`.
    """
    return [_PATTERN.sub(r"[\g<0>]", str(file)) for file in files]


class Database:
    """Answers SQL over files. One may be shared by threads; `close` it, or leave that to the end of the process.

    Raises ValueError when a limit makes no sense, or nothing can be written where it is to spill.

    Example: `Database().ask(f"SELECT count(*) AS n FROM {PARQUET})", [["a.parquet"]]) == [{"n": 7}]`.
    """

    def __init__(self, limits: DatabaseLimits = USUAL) -> None:
        if limits.memory_mb < 64 or limits.threads < 1:
            raise ValueError("the database needs 64 MB of memory and one thread at least")
        self.limits = limits
        spill = _spill_folder(limits.spill)
        # Nothing is loaded or fetched: what reads Parquet is built in.
        self._db = duckdb.connect(
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "memory_limit": f"{limits.memory_mb}MB",
                "threads": str(limits.threads),
                "temp_directory": str(spill),
            }
        )
        self.close = weakref.finalize(self, _end, self._db, spill)

    def ask(self, question: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        """The answer's rows.

        Raises ValueError when the question needs more than the limits allow, or a file cannot be read.
        """
        with self._refused():
            answer = self._db.cursor().execute(question, values)
            names = [column[0] for column in answer.description or ()]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def table(self, question: str, values: Sequence[Any]) -> Any:
        """The answer as a table of pyarrow. Raises ValueError as `ask` does."""
        with self._refused():
            return self._db.cursor().sql(question, params=values).to_arrow_table()

    def batches(self, question: str, values: Sequence[Any], rows: int) -> Iterator[Any]:
        """The answer as batches of pyarrow of so many rows at most, one after the other. Raises ValueError as `ask` does."""
        with self._refused():
            yield from self._db.cursor().sql(question, params=values).to_arrow_reader(rows)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            raise ValueError(
                f"the question takes more than {self.limits.memory_mb} MB of memory; narrow it, or allow more (--memory-mb)"
            ) from error
        except (duckdb.Error, RuntimeError) as error:  # of a store, which may hold anything, names that are no UTF-8 too
            raise ValueError(f"the stored episodes cannot be read: {str(error).splitlines()[0]:.300}") from error


def _spill_folder(wanted: Path | None) -> Path:
    """A fresh folder that nobody else writes to."""
    try:
        return Path(tempfile.mkdtemp(prefix="burnish-inspect-", dir=wanted))
    except OSError as error:
        raise ValueError(
            f"--spill: nothing can be written in {wanted or tempfile.gettempdir()}: {os.strerror(error.errno or 0)}"
        ) from error


def _end(db: duckdb.DuckDBPyConnection, spill: Path) -> None:
    db.close()
    shutil.rmtree(spill, ignore_errors=True)
