"""Indices of the stores that somebody looks at, made in the background."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ...rewards.calling.threads import start
from ..database import Database
from ..index import build_segment, coverage
from ..vocabulary import build_vocabulary, is_due

WORTH = 4 << 20
"""Bytes of a store that are read as fast without an index."""
AGAIN_S = 60.0
"""After how long an index that could not be made is tried again."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What whoever looks at a store should know, "" when nothing, and what `Library` may read beyond the index."""

    note: str
    beyond: int | None


class Indexer:
    """Makes the indices of stores, one at a time, on a thread of its own. Example: `Indexer(Database()).look(run / "episodes")`."""

    def __init__(self, db: Database) -> None:
        self._db, self._lock = db, threading.Lock()
        self._waiting: list[Path] = []
        self._failed: dict[Path, tuple[str, float]] = {}  # why, and when it is tried again

    def look(self, store: Path) -> Looked:
        """See to it that a store is indexed. While it is not, lists are of what the index covers, and of the latest files."""
        covered = coverage(store)
        missing = covered.bytes
        if missing < WORTH and not is_due(store):
            return Looked("", None)
        why, again = self._failed.get(store, ("", 0.0))
        if time.monotonic() >= again:
            self._begin(store)
        if missing < WORTH:
            return Looked("", None)
        if why:
            return Looked(f"Lists of this run take long: {why}.", None)
        part = 1 - (missing - WORTH) / covered.whole
        said = f"An index of this run is being made; until then, lists are of {part:.0%} of its episodes."
        return Looked(said, WORTH)

    def _begin(self, store: Path) -> None:
        with self._lock:
            if store not in self._waiting:
                self._waiting.append(store)
                if len(self._waiting) == 1:
                    start("index", self._work)

    def _work(self) -> None:
        while self._waiting:
            store = self._waiting[0]
            try:
                while coverage(store).bytes >= WORTH and build_segment(store, self._db):
                    pass
                if is_due(store):
                    build_vocabulary(store, self._db)
                self._failed.pop(store, None)
            except Exception as error:  # shown where it is missed: the pages work without
                self._failed[store] = f"they have no index: {error}", time.monotonic() + AGAIN_S
            with self._lock:
                self._waiting.pop(0)
                if not self._waiting:
                    return
