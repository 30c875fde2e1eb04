"""What every key has spent in all: tokens of prompts and answers, kept beside the keys file, so that a budget outlives the service."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .keys import Key

log = logging.getLogger("burnish.serving.spending")

BUSY_S = 10.0
"""How long another process may take to write."""


class Spending:
    """The tokens that each key has spent, in `FILE.spent`, an SQLite database. Several services may share one, and wait for each other: on
    an event loop, `note` and `spent` have the database asked in a thread of their own.

    Raises ValueError when it cannot be written. Example: `Spending(Path("keys.toml")).of(key)`.
    """

    def __init__(self, keys_file: Path) -> None:
        file = spending_file(keys_file)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="burnish-spending")
        self._owed = Counter[str]()  # noted and not yet written; that thread's own
        try:
            # Used by one at a time, though by whichever thread runs it. A service that is killed loses what is being written, a machine the
            # last moments.
            self._database = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS spent (key TEXT PRIMARY KEY, tokens INTEGER NOT NULL) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise ValueError(f"{file}, where spent tokens are counted, cannot be written: {error}") from None

    def of(self, key: Key) -> int:
        """Tokens that a key has spent."""
        row = self._database.execute("SELECT tokens FROM spent WHERE key = ?", (key.sha256,)).fetchone()
        return int(row[0]) if row is not None else 0

    def add(self, digest: str, tokens: int) -> None:
        """Count more tokens of the key with a SHA-256."""
        self._database.execute(
            "INSERT INTO spent VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET tokens = tokens + excluded.tokens", (digest, tokens)
        )

    def note(self, key: Key, tokens: int) -> None:
        """Count more tokens of a key, soon. What cannot be written now is written with what comes next."""
        self._thread.submit(self._write, key.sha256, tokens)

    async def spent(self, key: Key) -> int:
        """Tokens that a key has spent, those included that were noted before. Raises sqlite3.Error."""
        return await asyncio.wrap_future(self._thread.submit(self._written_of, key))

    def _write(self, digest: str, tokens: int) -> None:
        self._owed[digest] += tokens
        try:
            for owing in list(self._owed):
                self.add(owing, self._owed[owing])
                del self._owed[owing]
        except sqlite3.Error as error:
            log.warning("spent tokens cannot be written now, and are kept: %s", error)

    def _written_of(self, key: Key) -> int:
        return self.of(key) + self._owed[key.sha256]

    def close(self) -> None:
        self._thread.shutdown()
        self._database.close()


def spending_file(keys_file: Path) -> Path:
    """Where the tokens of the keys in a file are counted."""
    return keys_file.with_name(f"{keys_file.name}.spent")
