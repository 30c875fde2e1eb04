"""Scoring equal input once: a bounded cache keyed by what a reward can see, shared by calls that are still under way."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..types import RewardInput

T = TypeVar("T")


def content_key(episodes: Sequence[RewardInput]) -> bytes | None:
    """A digest of everything in the episodes but their ids, or None where the data is not plain JSON: such input is never cached."""
    try:
        text = json.dumps([_content(episode) for episode in episodes], sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


def _content(episode: RewardInput) -> list[Any]:
    task, messages = episode.task, [message.to_dict() for message in episode.messages]
    given = [task.id, task.seed, [message.to_dict() for message in task.prompt], dict(task.data)]
    measured = [float(episode.env_reward), dict(episode.env_parts), dict(episode.metrics)]
    return [given, messages, measured, dict(episode.data), episode.truncation]


@dataclass
class _Shared(Generic[T]):
    task: asyncio.Future[T]
    waiting: int = 0


class ScoreCache(Generic[T]):
    """The last `size` results by key, least recently used first to go. Failures are not kept, nor what `keep` refuses: they may pass.

    Example: `await ScoreCache(1024).once([episode], lambda: score(episode))`.
    """

    def __init__(self, size: int, keep: Callable[[T], bool] = lambda result: True) -> None:
        self._size = size
        self._keep = keep
        self._done: OrderedDict[bytes, T] = OrderedDict()
        self._flying: dict[bytes, _Shared[T]] = {}

    async def once(self, episodes: Sequence[RewardInput], compute: Callable[[], Awaitable[T]]) -> T:
        """The result for what these episodes hold, computed unless it is known or on its way. Raises what `compute` raises, for everyone
        who waits for it."""
        key = content_key(episodes) if self._size else None
        if key is None:
            return await compute()
        if key in self._done:
            self._done.move_to_end(key)
            return self._done[key]
        shared = self._flying.get(key)
        if shared is None or shared.task.get_loop() is not asyncio.get_running_loop():
            shared = self._flying[key] = self._start(key, compute)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.waiting == 0 and not shared.task.done():
                self._forget(key, shared)
                shared.task.cancel()

    def _start(self, key: bytes, compute: Callable[[], Awaitable[T]]) -> _Shared[T]:
        shared = _Shared(asyncio.ensure_future(compute()))
        shared.task.add_done_callback(lambda task: self._land(key, shared))
        return shared

    def _land(self, key: bytes, shared: _Shared[T]) -> None:
        self._forget(key, shared)
        if shared.task.cancelled() or shared.task.exception() is not None or not self._keep(shared.task.result()):
            return
        self._done[key] = shared.task.result()
        if len(self._done) > self._size:
            self._done.popitem(last=False)

    def _forget(self, key: bytes, shared: _Shared[T]) -> None:
        if self._flying.get(key) is shared:
            del self._flying[key]
