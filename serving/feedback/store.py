"""The folder in which feedback is kept.

feedback/
  store.json      of which format it is, and how long what is kept: written by the service, read by the commands
  secret          what ids are made with (`ids.py`); whoever has it can give feedback for anybody
  waiting/        answers that wait for feedback (`rows.AnswerRow`), for hours
  given/          feedback, each with the conversation that it is about where that may be kept (`rows.FeedbackRow`), for days
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ...envs.pydantic_words import first_error
from ...rollout.store.own_files import read_whole
from ..config import FeedbackConfig
from ..keys import write_whole
from .rows import AnswerRow, FeedbackRow
from .segments import Segments

FORMAT: Final = "burnish-feedback"
VERSION: Final = 1
STORE_FILE: Final = "store.json"
SECRET_FILE: Final = "secret"


class FeedbackStore:
    """Answers that wait, and feedback. Example: `list(open_store(Path("feedback")).feedback())`."""

    def __init__(self, config: FeedbackConfig, clock: Callable[[], float] = time.time) -> None:
        self.folder, half = Path(config.folder), config.megabytes * 2**20 // 2
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._waiting = Segments(self.folder / "waiting", config.wait_hours * 3600, half, clock)
        self._given = Segments(self.folder / "given", config.days * 86_400, half, clock)

    def wait(self, row: AnswerRow) -> None:
        """Keep an answer until feedback comes, or too much time has passed; without its conversation where that is too long."""
        self._waiting.append(_fitting(row, self._waiting.longest_row))

    def answer(self, id: str, since: float) -> AnswerRow | None:
        """An answer that waits. since: when it was begun."""
        found = self._waiting.find(id, since)
        return AnswerRow.model_validate(found) if found is not None else None

    def add(self, row: FeedbackRow) -> None:
        """Keep feedback."""
        self._given.append(_fitting(row, self._given.longest_row))

    def given(self, id: str) -> int:
        """How often feedback was given on an answer."""
        return self._given.count(id)

    def feedback(self) -> Iterator[FeedbackRow]:
        """All that is kept, in the order in which it came. Raises ValueError, one line, for a row that is none."""
        for row in self._given.rows():
            try:
                yield FeedbackRow.model_validate(row)
            except ValidationError as error:
                raise ValueError(f"{self.folder}: a row of feedback cannot be read: {first_error(error)}") from None

    def delete(self, ids: Collection[str]) -> int:
        """Let go of answers and of all feedback on them; how many rows there were."""
        return self._waiting.remove(ids) + self._given.remove(ids)

    def prune(self) -> None:
        """Let go of what has been kept for long enough."""
        self._waiting.prune()
        self._given.prune()


def make_store(config: FeedbackConfig, clock: Callable[[], float] = time.time) -> FeedbackStore:
    """The store of a service, made if need be. Raises ValueError when the folder cannot be written, or is another's."""
    folder = Path(config.folder)
    try:
        if folder.is_dir() and any(folder.iterdir()):
            _read_head(folder)
        store = FeedbackStore(config, clock)
        head = {"format": FORMAT, "version": VERSION, **config.model_dump(include={"wait_hours", "days", "megabytes"})}
        write_whole(folder / STORE_FILE, json.dumps(head) + "\n")
    except OSError as error:
        raise ValueError(f"feedback folder {folder} cannot be written: {error.strerror}") from None
    return store


def open_store(folder: Path, clock: Callable[[], float] = time.time) -> FeedbackStore:
    """A store as the service left it, without what has been kept for long enough. Raises ValueError when the folder holds none."""
    head = _read_head(folder)
    store = FeedbackStore(head, clock)
    store.prune()
    return store


def _read_head(folder: Path) -> FeedbackConfig:
    try:
        head: Any = json.loads(read_whole(folder / STORE_FILE))
        if not isinstance(head, dict) or head.pop("format", None) != FORMAT:
            raise ValueError("it is of another format")
        if (version := head.pop("version", None)) != VERSION:
            raise ValueError(f"it has version {version!r}; this burnish reads version {VERSION}")
        return FeedbackConfig.model_validate({**head, "folder": str(folder)})
    except OSError:
        raise ValueError(f"{folder} is no feedback store: it has no {STORE_FILE}, which a service with [service.feedback] writes") from None
    except ValidationError as error:
        raise ValueError(f"{folder}: {STORE_FILE}: {first_error(error)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}: {STORE_FILE} cannot be read: {str(error)[:200]}") from None


def _fitting(row: AnswerRow | FeedbackRow, most_bytes: int) -> dict[str, Any]:
    """A row as JSON, without its conversation where that would make it larger than a row may be."""
    said = row.model_dump(exclude_none=True)
    if len(json.dumps(said)) >= most_bytes:
        said = row.model_dump(exclude_none=True, exclude={"asked", "choices", "answered"})
    return said
