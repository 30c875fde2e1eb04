"""Where answers wait for feedback and feedback is taken: one thread writes, so that the loop that answers never waits for a disk.

What the thread has not written yet is bounded. Answers that come when there is no more room are let go and counted; feedback is refused.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from ..admission import Refused
from ..config import FeedbackConfig
from ..observed import Answered, Choice, Prompted, Question
from .ids import AnswerIds, kept_secret
from .rows import AnswerRow, FeedbackRow, GivenFeedback
from .store import SECRET_FILE, FeedbackStore, make_store

MOST_JOBS: Final = 1024
MOST_BYTES: Final = 32 * 2**20
"""Of requests and answers on the wire that are not written yet."""
MOST_GIVEN: Final = 16
"""Times that feedback on one answer is kept: each time its conversation is, and the folder is everybody's."""
IDLE_S: Final = 60.0
"""After how long without work the thread looks for what has been kept for long enough."""
AGAIN_S: Final = 1.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


class FeedbackCounts(Protocol):
    """Where it is counted what became of answers and feedback (`audit.Metrics`)."""

    def feedback(self, key: str, kind: str) -> None: ...
    def unkept(self, reason: str) -> None: ...


class FeedbackDesk:
    """Takes feedback of one service. conversations: whether what was said is kept. Raises ValueError when the store cannot be had."""

    def __init__(self, config: FeedbackConfig, counts: FeedbackCounts, clock: Callable[[], float] = time.time) -> None:
        self.conversations, self._counts, self._clock = config.conversations, counts, clock
        self._store: FeedbackStore = make_store(config, clock)
        self.ids = AnswerIds(kept_secret(self._store.folder / SECRET_FILE), clock)
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(MOST_JOBS)
        self._bytes, self._counting = 0, threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name="burnish-feedback")
        self._thread.start()

    def remember(self, answered: Answered) -> None:
        """Have an answer wait for feedback; returns at once."""
        record, size = answered.record, answered.record.read_bytes + len(answered.body)
        row = AnswerRow(time=self._now(), id=record.id, key=record.key, model=record.model, served_by=record.version)

        def write() -> None:
            try:
                choices = answered.choices() if self.conversations else []
                self._store.wait(row.model_copy(update={"asked": answered.asked, "choices": choices}) if choices else row)
            except Exception:
                self._counts.unkept("failed")
                raise
            finally:
                self._take(-size)

        if not self._take(size):
            self._counts.unkept("full")
            return
        try:
            self._jobs.put_nowait(write)
        except queue.Full:
            self._take(-size)
            self._counts.unkept("full")

    async def give(self, given: GivenFeedback, key: str) -> FeedbackRow:
        """Store feedback of a key. Raises Refused: 404 for what is no answer to it, 409 for one on which enough was said, 503 where it
        cannot be stored now."""
        made_at = self._made_at(given.id, key)
        return await self._done(lambda: self._give(given, key, made_at))

    async def forget(self, id: str, key: str) -> int:
        """Let go of an answer to a key and of all feedback on it; how many rows there were. Raises Refused as `give` does."""
        self._made_at(id, key)
        return await self._done(lambda: self._store.delete({id}))

    async def judged(self, answered: Answered, asked: Question, choice: Choice, verdicts: dict[str, bool]) -> None:
        """Store what a judge says of the first choice of an answer, where conversations may be kept; else nothing would come of it."""
        record = answered.record
        if not self.conversations:
            return
        row = FeedbackRow(
            time=self._now(), id=record.id, source="judge", key=record.key, model=record.model, served_by=record.version,
            asked=asked, answered=choice, verdicts=verdicts,
        )  # fmt: skip
        await self._done(lambda: self._store.add(row))

    def close(self) -> None:
        """Write what there is, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _made_at(self, id: str, key: str) -> float:
        made_at = self.ids.made_at(id, key)
        if made_at is None:
            said = f"no answer to this key has the id {id[:100]!r}; feedback is given by the key that asked"
            raise Refused(404, "answer", said, code="answer_not_found", param="id")
        return made_at

    def _give(self, given: GivenFeedback, key: str, made_at: float) -> FeedbackRow:
        if self._store.given(given.id) >= MOST_GIVEN:
            said = f"feedback was given on this answer {MOST_GIVEN} times; delete it to say something else"
            raise Refused(409, "invalid", said, code="feedback_exists", param="id")
        found = self._store.answer(given.id, made_at)
        asked, answered = None, None
        if found is not None and found.choices is not None:
            if given.choice >= len(found.choices):
                said = f"the answer has {len(found.choices)} choices, from 0; there is no {given.choice}"
                raise Refused(400, "invalid", said, param="choice")
            asked, answered = found.asked, found.choices[given.choice]
            if isinstance(asked, Prompted):
                asked = asked.of_choice(given.choice, len(found.choices))
        row = FeedbackRow(
            time=self._now(), key=key, asked=asked, answered=answered,
            model=found.model if found is not None else "", served_by=found.served_by if found is not None else "",
            **given.model_dump(),
        )  # fmt: skip
        self._store.add(row)
        for kind in kinds_of(row):
            self._counts.feedback(key, kind)
        return row

    async def _done(self, job: Callable[[], T]) -> T:
        """What a job gives that the thread does."""
        result: Future[T] = Future()

        def work() -> None:
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(job())
                except BaseException as error:
                    result.set_exception(error)

        try:
            self._jobs.put_nowait(work)
            return await asyncio.wrap_future(result)
        except queue.Full:
            raise Refused(503, "full", "too much feedback is under way; come again", code="overloaded", again_s=AGAIN_S) from None
        except OSError as error:
            _log.warning("feedback could not be stored: %s", error.strerror)
            raise Refused(503, "unstored", "feedback cannot be stored now", code="feedback_unavailable", again_s=IDLE_S) from None

    def _take(self, size: int) -> bool:
        """Count bytes that are not written yet, or that are now; whether there is room for them."""
        with self._counting:
            if size > 0 and self._bytes + size > MOST_BYTES:
                return False
            self._bytes += size
            return True

    def _work(self) -> None:
        pruned = time.monotonic()
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
                if job is None:
                    return
                job()
            except queue.Empty:
                pass
            except Exception:  # one answer that could not be kept; whoever waits for the others is still served
                _log.exception("an answer could not be kept for feedback")
            if time.monotonic() - pruned >= IDLE_S:
                pruned = time.monotonic()
                self._prune()

    def _prune(self) -> None:
        try:
            self._store.prune()
        except OSError as error:
            _log.warning("the feedback store cannot be kept in order: %s", error.strerror)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")


def kinds_of(row: FeedbackRow) -> list[str]:
    """What there is of feedback, as it is counted."""
    found = [row.rating or "", "correction" if row.correction is not None else "", "verdict" if row.verdicts else ""]
    return [kind for kind in found if kind]
