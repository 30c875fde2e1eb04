"""What every key has spent in all: tokens of prompts and answers, kept beside the keys file, so that a budget outlives the service."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from .keys import Key

BUSY_S = 10.0
"""How long another process may take to write."""


class Spending:
    """The tokens that each key has spent, in `FILE.spent`, an SQLite database. Several services may share one.

    Raises ValueError when it cannot be written. Example: `Spending(Path("keys.toml")).of(key)`.
    """

    def __init__(self, keys_file: Path) -> None:
        file = spending_file(keys_file)
        try:
            # Used by one task at a time, though by whichever thread runs it. A service that is killed loses nothing; a machine may lose the
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

    def add(self, key: Key, tokens: int) -> None:
        """Count more tokens of a key."""
        self._database.execute(
            "INSERT INTO spent VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET tokens = tokens + excluded.tokens", (key.sha256, tokens)
        )

    def close(self) -> None:
        self._database.close()


def spending_file(keys_file: Path) -> Path:
    """Where the tokens of the keys in a file are counted."""
    return keys_file.with_name(f"{keys_file.name}.spent")
