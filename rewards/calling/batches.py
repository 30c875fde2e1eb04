"""Gathering what is ready together: single episodes in, one call of a batched function, single results out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ...envs.failures import EpisodeFailure, Failure
from ..types import RewardInput, Score

Judge = Callable[[Sequence[RewardInput]], Awaitable[Sequence[Score | Failure]]]


@dataclass(frozen=True, slots=True)
class _Item:
    episode: RewardInput
    answer: asyncio.Future[Score | Failure]
    due_at: float


class Batcher:
    """Collects episodes until `max_batch` are waiting or the first has waited `max_wait_s` seconds, then judges them together.

    At most `max_concurrent` batches are judged at once; what arrives meanwhile waits and goes into the next ones. judge: gives one
    result per episode, in order, within a time of its own.
    """

    def __init__(self, judge: Judge, max_batch: int, max_wait_s: float, max_concurrent: int) -> None:
        self._judge = judge
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_concurrent = max_concurrent
        self._loop: asyncio.AbstractEventLoop | None = None

    async def submit(self, episode: RewardInput) -> Score:
        """The score of one episode. Raises EpisodeFailure with the failure that `judge` gave it, and what `judge` raised."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._start_on(loop)
        item = _Item(episode, loop.create_future(), loop.time() + self._max_wait_s)
        self._waiting.append(item)
        self._pump(loop)
        result = await item.answer
        if isinstance(result, Failure):
            raise EpisodeFailure(result)
        return result

    def _start_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """What waited on another loop, which has ended, is gone with it."""
        self._loop = loop
        self._waiting: deque[_Item] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start every batch that is full or due, as far as there is room, and set the timer for the next."""
        waiting = self._waiting
        while waiting and len(self._running) < self._max_concurrent:
            if waiting[0].answer.done():  # cancelled while it waited
                waiting.popleft()
            elif len(waiting) >= self._max_batch or waiting[0].due_at <= loop.time():
                batch = [waiting.popleft() for _ in range(min(self._max_batch, len(waiting)))]
                self._launch(loop, [item for item in batch if not item.answer.done()])
            else:
                break
        due_at = waiting[0].due_at if waiting and len(self._running) < self._max_concurrent else None
        if self._timer is not None and self._timer.when() != due_at:
            self._timer.cancel()
            self._timer = None
        if due_at is not None and self._timer is None:
            self._timer = loop.call_at(due_at, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._pump(loop)

    def _launch(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Item]) -> None:
        task = loop.create_task(self._run(batch))
        self._running.add(task)
        left = len(batch)

        def one_left(answer: asyncio.Future[Score | Failure]) -> None:
            nonlocal left
            left -= 1
            if left == 0 and answer.cancelled():
                task.cancel()  # nobody waits for this batch any more

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            self._pump(loop)

        for item in batch:
            item.answer.add_done_callback(one_left)
        task.add_done_callback(ended)

    async def _run(self, batch: Sequence[_Item]) -> None:
        try:
            results = await self._judge([item.episode for item in batch])
        except asyncio.CancelledError:
            for item in batch:
                item.answer.cancel()
            raise
        except Exception as error:
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        for item, result in zip(batch, results, strict=True):
            if not item.answer.done():
                item.answer.set_result(result)
