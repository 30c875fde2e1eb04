"""Indices of the stores that somebody looks at, made in the background."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from ...rewards.calling.threads import start
from ...rollout.store.moments import moments
from ..database import Database
from ..index import build_segment, coverage

WORTH = 4 << 20
"""Bytes of a store that are read as fast without an index."""


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
        self._failed: dict[Path, str] = {}

    def look(self, store: Path) -> Looked:
        """See to it that a store is indexed. While it is not, lists are of what the index covers, and of the latest files."""
        if store in self._failed:
            return Looked(f"Lists of this run take long: {self._failed[store]}.", None)
        missing = coverage(store).bytes
        if missing < WORTH:
            return Looked("", None)
        with self._lock:
            if store not in self._waiting:
                self._waiting.append(store)
                if len(self._waiting) == 1:
                    start("index", self._work)
        whole = sum(file.stat().st_size for file, _ in moments(store))
        said = f"An index of this run is being made; until then, lists are of {1 - (missing - WORTH) / whole:.0%} of its episodes."
        return Looked(said, WORTH)

    def _work(self) -> None:
        while self._waiting:
            store = self._waiting[0]
            try:
                while coverage(store).bytes >= WORTH and build_segment(store, self._db):
                    pass
            except Exception as error:  # shown where it is missed: the pages work without
                self._failed[store] = f"they have no index: {error}"
            with self._lock:
                self._waiting.pop(0)
                if not self._waiting:
                    return
