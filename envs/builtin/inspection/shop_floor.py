"""The shop floor's database: parts, their features, and every measurement taken, in SQLite."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from .parts import Feature, Part, level_of, make_part, measured_deviation

SCHEMA = """
CREATE TABLE IF NOT EXISTS parts (seed INTEGER, level INTEGER, number INTEGER NOT NULL, PRIMARY KEY (seed, level)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS features (
    seed INTEGER, level INTEGER, position INTEGER, name TEXT NOT NULL, nominal_um INTEGER NOT NULL, limit_um INTEGER NOT NULL,
    deviation_um INTEGER NOT NULL, PRIMARY KEY (seed, level, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS measurements (
    inspection TEXT NOT NULL, feature TEXT NOT NULL, repeat INTEGER NOT NULL, deviation_um INTEGER NOT NULL,
    PRIMARY KEY (inspection, feature, repeat)
) WITHOUT ROWID;
"""
PART = "SELECT number FROM parts WHERE seed = ? AND level = ?"
FEATURES = "SELECT name, nominal_um, limit_um, deviation_um FROM features WHERE seed = ? AND level = ? ORDER BY position"


class ShopFloor:
    """Parts on the bench, and the gauge. Safe to use from several threads.

    A part arrives in the database when it is first asked for. Measurements are counted per inspection, so that repeating one reads the
    next noisy value, and two inspections of the same part with equal histories read equal values.
    """

    def __init__(self, path: Path | str = ":memory:") -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + SCHEMA)

    def part(self, seed: int, level: int) -> Part:
        """The part of this seed, made and stored when it is new. Raises ValueError for a level that does not exist."""
        level_of(level)
        with self._lock, closing(self._db.cursor()) as cursor:
            row = cursor.execute(PART, (seed, level)).fetchone()
            if row is None:
                self._store(cursor, make_part(seed, level), level)
                row = cursor.execute(PART, (seed, level)).fetchone()
            features = cursor.execute(FEATURES, (seed, level)).fetchall()
        return Part(seed, row[0], tuple(Feature(*feature) for feature in features))

    def measure(self, inspection: str, part: Part, feature: Feature, level: int) -> int:
        """Read the gauge once, write the reading down, and return the deviation in micrometres."""
        with self._lock, closing(self._db.cursor()) as cursor:
            key = (inspection, feature.name)
            (repeat,) = cursor.execute("SELECT COUNT(*) FROM measurements WHERE inspection = ? AND feature = ?", key).fetchone()
            deviation = measured_deviation(part, feature, repeat, level_of(level).noise)
            cursor.execute("INSERT INTO measurements VALUES (?, ?, ?, ?)", (*key, repeat, deviation))
        return deviation

    def measurements(self, inspection: str) -> int:
        """How many readings an inspection has taken."""
        with self._lock, closing(self._db.cursor()) as cursor:
            (count,) = cursor.execute("SELECT COUNT(*) FROM measurements WHERE inspection = ?", (inspection,)).fetchone()
        return int(count)

    def close(self) -> None:
        self._db.close()

    def _store(self, cursor: sqlite3.Cursor, part: Part, level: int) -> None:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO parts VALUES (?, ?, ?)", (part.seed, level, part.number))
        rows = [(part.seed, level, i, f.name, f.nominal_um, f.limit_um, f.deviation_um) for i, f in enumerate(part.features)]
        cursor.executemany("INSERT INTO features VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        cursor.execute("COMMIT")
