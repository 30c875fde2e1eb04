"""Trackers at work: each gets what the run measures on a thread of its own.

One that cannot start stops the run before it begins. One that fails or hangs later is left behind with one warning: the run's own folder
holds everything that a tracker would have got.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from burnish.envs.types import Episode
from burnish.recipe.tracking import TRACKERS, EpisodeTracker, TrackedRun, Tracker, TrackingConfig, check_traces
from burnish.rewards.calling.threads import Daemons
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import AlarmRow, EvaluationRecord

WAITING = 1000
"""Things that may wait for a tracker; one that is further behind hangs."""

Say = Callable[[str], None]


class Trackers:
    """The trackers of a run. Example: `Trackers([feed]).metrics("rft", 3, {"reward_mean": 0.7})`."""

    def __init__(self, feeds: Sequence[Feed] = ()) -> None:
        self._feeds = tuple(feeds)

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        self._tell(lambda one: one.metrics(phase, step, values))

    def evaluation(self, record: EvaluationRecord) -> None:
        self._tell(lambda one: one.evaluation(record))

    def alarm(self, row: AlarmRow) -> None:
        self._tell(lambda one: one.alarm(row))

    def episodes(self, at: Moment, episodes: Sequence[Episode]) -> None:
        """Those of a step or an evaluation, for the trackers that take some of them."""
        for feed in self._feeds:
            feed.put_episodes(at, episodes)

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for feed in self._feeds:
            feed.put(what)


class Feed:
    """One tracker and its thread. say: told once, when the tracker fails, hangs or falls behind; it then gets nothing more."""

    def __init__(self, id: str, tracker: Tracker, say: Say) -> None:
        self._id, self._tracker, self._say = id, tracker, say
        self._traces = tracker.traces if isinstance(tracker, EpisodeTracker) else 0
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {id}", daemon=True)
        self._thread.start()

    def put(self, what: Callable[[Tracker], None]) -> None:
        """Hand something over; returns at once."""
        if self._lost.is_set():
            return
        try:
            self._waiting.put_nowait(what)
        except queue.Full:
            self._lose(f"is {WAITING} steps behind")

    def put_episodes(self, at: Moment, episodes: Sequence[Episode]) -> None:
        """Hand over as many of them as the tracker takes; the others are not held for it."""
        chosen = tuple(episodes[: self._traces])
        if chosen:
            self.put(partial(_show, at=at, episodes=chosen))

    def close(self, wait_s: float) -> None:
        """Wait until the tracker has taken everything and closed, `wait_s` seconds at most."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._lose(f"did not end within {wait_s:g} s")

    def _work(self) -> None:
        while (what := self._waiting.get()) is not None:
            self._try(what)
        self._try(lambda one: one.close())

    def _try(self, what: Callable[[Tracker], None]) -> None:
        if self._lost.is_set():
            return
        try:
            what(self._tracker)
        except Exception as error:  # a tracker is nobody's training
            self._lose(f"failed: {_said(error)}")

    def _lose(self, why: str) -> None:
        if not self._lost.is_set():
            self._lost.set()
            self._say(f"tracker {self._id} {why}; it gets nothing more of this run, whose folder has everything")


@contextmanager
def tracked(config: TrackingConfig, run: TrackedRun, say: Say, wait_s: float = 60.0) -> Iterator[Trackers]:
    """The recipe's trackers while the block runs. Raises ValueError naming the first that does not start.

    wait_s: seconds that each may take to start, and at the end for what it has not taken yet.
    """
    feeds: list[Feed] = []
    try:
        for id in config.use:
            feeds.append(Feed(id, _started(id, config, run, wait_s), say))
        yield Trackers(feeds)
    finally:
        for feed in feeds:
            feed.close(wait_s)


def _started(id: str, config: TrackingConfig, run: TrackedRun, wait_s: float) -> Tracker:
    factory = TRACKERS.get(id)
    try:
        started: Tracker = Daemons("tracker").submit(factory, run, **config.options(id)).result(wait_s)
        if isinstance(started, EpisodeTracker):
            check_traces(started.traces)
        return started
    except Exception as error:
        why = f"did not start within {wait_s:g} s" if isinstance(error, TimeoutError) else _said(error)
        raise ValueError(f"tracking: {id} cannot start: {why}; put it right, or take it out of tracking.use") from error


def _show(tracker: Tracker, at: Moment, episodes: Sequence[Episode]) -> None:
    assert isinstance(tracker, EpisodeTracker)
    tracker.episodes(at, episodes)


def _said(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
