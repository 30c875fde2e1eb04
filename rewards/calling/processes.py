"""Sync handlers in processes of their own, which can be killed: what a hung call, or a regular expression that backtracks, needs.

A thread cannot be stopped, and one that holds the GIL stops everything beside it. `isolation = "process"` runs a registered function in
a few worker processes (pebble). A worker imports what registers the function and finds it by its id there, so neither code nor options
with code in them travel; episodes do, pickled between a process and its own children.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import math
import multiprocessing
import os
import pickle  # noqa: TID251  # between a process and its own children, as multiprocessing does
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as Late
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import count as count_up
from typing import Any, Literal

from pebble import ProcessExpired, ProcessPool

from ...envs.callables import is_async, written
from ...envs.failures import EpisodeFailure, said_by, short_traceback
from ...envs.registry import Registry, is_plugin_module, load_plugin
from ...rpc.user_code import is_asked_for
from ..types import InvalidScore

Kind = Literal["reward", "verifier"]

REGISTRIES: Mapping[Kind, tuple[str, str]] = {
    "reward": ("burnish.rewards.plugin", "REWARDS"),
    "verifier": ("burnish.rewards.remote.service", "VERIFIERS"),
}
"""Module and name of what a worker finds a function in: named, since these modules stand above this one."""
PRELOAD = ["__main__", *(module for module, _ in REGISTRIES.values())]
"""What workers share: they are forked from a server that has imported it, so that a killed one is replaced at once."""

STOP_S = 2.0
LOOK_S = 1.0
"""Seconds between two looks at whether a call that waits is still known."""
BEGIN_S = 300.0
"""Seconds that workers may take to start: how long calls may wait, those that were given up too, while none begins and not all workers
have one."""
KILL_S = 15.0
"""Seconds that pebble may take to kill a worker whose call is late or given up, for each of them: it kills one after the other."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a worker finds a function: what to import, and the id under which that registers it.

    Example: `Reference("reward", "my-team/format-v1", "my_rewards")`; file: of a plug-in, which imports by its path.
    """

    kind: Kind
    id: str
    module: str
    file: str | None = None


class Died(Exception):
    """The worker process ended during the call: killed for memory, a crash of native code, `os._exit`."""


class CannotCall(Exception):
    """The call cannot be made in another process; the text says why."""


class Raised(Exception):
    """The function raised; the text is what `short_traceback` makes of it there."""


def reference(kind: Kind, id: str, function: Callable[..., Any]) -> Reference:
    """How a worker finds `function`. Raises ValueError, in one line, when it cannot."""
    inner = written(function)
    module, name = inner.__module__, inner.__qualname__
    if is_async(function):
        raise ValueError(f'{kind} {id!r}: isolation = "process" is for sync functions; an async one runs on the event loop')
    if module == "__main__" or "<locals>" in name:
        where = "in __main__" if module == "__main__" else f"inside {name.partition('.<locals>')[0]}"
        raise ValueError(
            f'{kind} {id!r}: isolation = "process" needs a function that a worker can import, and {name} is defined {where}; '
            "move it to the top level of a module or plug-in file"
        )
    file = getattr(sys.modules.get(module), "__file__", None) if is_plugin_module(module) else None
    return Reference(kind, id, module, file)


class Workers:
    """Worker processes for one function with its options. Started by the first call; at most `count` calls run at once.

    Example: `await Workers(reference("reward", plugin.id, plugin.function), {}, count=2).call(episode, timeout_s=0.5)`.
    """

    def __init__(self, where: Reference, options: Mapping[str, Any], count: int) -> None:
        self.count = count
        self._where = where
        self._options = dict(options)
        self._pool: ProcessPool | None = None
        self._pid = 0
        self._lock = threading.Lock()
        self._numbers = count_up()
        self._latest = -1  # the number of the last call that is known to have begun: they begin in their order
        self._begun: set[int] = set()  # the numbers of those that are known to run
        self._left: dict[Any, float] = {}  # jobs given up that pebble has not ended; since when, infinity for one that no worker had
        self._waited = self._counted = 0.0  # seconds that calls have waited since one last began, and until when they are counted

    async def call(self, argument: Any, timeout_s: float | None = None) -> Any:
        """What the function returned. A call past `timeout_s` seconds from its start, or cancelled, has its process killed and replaced.

        Raises TimeoutError, Died, CannotCall (the function or the argument cannot be had in a worker), Raised, and the
        InvalidScore or EpisodeFailure that the function raised.
        """
        try:
            how, value = await self._called(argument, timeout_s)
        except BrokenProcessPool:
            # A worker ended before anybody knew which call it had, so all that wait are given back: they are made once more.
            if self._pool is None:
                raise Died("its worker processes were closed during the call") from None
            try:
                how, value = await self._called(argument, timeout_s)
            except BrokenProcessPool:
                raise Died("its worker process ended during the call, or one beside it, twice") from None
        if how in ("returned", "failed"):
            try:
                value = pickle.loads(value)
            except BaseException as error:  # an object's own methods raise whatever they do
                if is_asked_for(error):
                    raise
                raise CannotCall(f"what it returned cannot be read in this process: {type(error).__name__}: {said_by(error)}") from error
        if how == "returned":
            return value
        if how == "failed":
            raise EpisodeFailure(value)
        raise {"invalid": InvalidScore, "raised": Raised, "unfit": CannotCall}[how](value)

    async def _called(self, argument: Any, timeout_s: float | None) -> tuple[str, Any]:
        """What a worker gave back. Raises as `call` does, and BrokenProcessPool when the pool ended beneath the call."""
        try:
            # Bytes, so that what cannot be read there ends one call, and no worker in the middle of taking it.
            sent = pickle.dumps((self._options, argument))
        except BaseException as error:  # pickling raises whatever an object's own methods do
            if is_asked_for(error):
                raise
            raise CannotCall(f"the call cannot be sent to a worker process: {type(error).__name__}: {said_by(error)}") from error
        pool = self._pool
        if pool is None or self._pid != os.getpid() or not pool.active:
            pool = await asyncio.to_thread(self._running)
            self._left, self._waited = {}, 0.0
        try:
            with self._lock:
                number, job = next(self._numbers), pool.schedule(_call, args=[self._where, sent], timeout=timeout_s)
        except RuntimeError as error:  # another call found it broken, or closed it, just before
            raise BrokenProcessPool(str(error)) from error
        try:
            answer: tuple[str, Any] = await self._of(job, number, pool, timeout_s)
        except Late:
            raise TimeoutError(f"no answer within {timeout_s:g} s; its process was killed") from None
        except ProcessExpired as error:
            raise Died(f"its worker process ended during the call (exit code {error.exitcode})") from None
        return answer

    async def _of(self, job: Any, number: int, pool: ProcessPool, timeout_s: float | None) -> Any:
        """The result of a job. Raises what it raised, and BrokenProcessPool when it is lost: the pool ended and forgot it, as it does what
        waits in it; or a worker ended while it took it, which shows when a later one has begun, or none has though a worker is free.

        A worker that is killed while it takes a call keeps the lock of the pool, which then begins nothing and kills nobody: it is ended.
        """
        answer, begun, passed, start = asyncio.wrap_future(job), math.inf, False, time.monotonic()
        try:
            while not answer.done():
                waits, now = not job.running(), time.monotonic()
                if not waits:
                    self._begins(number)
                    begun = min(begun, now)
                stuck = self._is_stuck(start if waits else math.inf)
                late = timeout_s is not None and now - begun > timeout_s + KILL_S * self.count
                if (stuck or late) and not answer.done():
                    pool.stop()
                    await asyncio.to_thread(self._end, pool)
                if (late or (waits and passed) or not pool.active) and not answer.done():
                    job.cancel()
                    raise Late if late else BrokenProcessPool("the call is lost")
                passed = waits and self._latest > number  # seen twice: what has begun says so a moment later
                await asyncio.wait({answer}, timeout=LOOK_S)
            self._begins(number)
            return answer.result()
        except asyncio.CancelledError:
            self._give_up(job, pool, start)
            raise
        finally:
            self._begun.discard(number)

    def _begins(self, number: int) -> None:
        """Note that a call is known to have begun: so the pool begins calls."""
        if number not in self._begun:
            self._begun.add(number)
            self._latest, self._waited = max(self._latest, number), 0.0

    def _give_up(self, job: Any, pool: ProcessPool, start: float) -> None:
        """Have pebble end a job that began to wait at `start`: at once where a worker has it, else as soon as one takes it."""
        waits, now = not job.running(), time.monotonic()
        job.cancel()
        if pool is self._pool:  # else it ended with its own
            self._is_stuck(start if waits else math.inf)
            self._left[job] = math.inf if waits else now

    def _is_stuck(self, start: float) -> bool:
        """Whether the pool begins nothing, or does not end a call that was given up, once that is counted which a call has waited since
        `start`, infinity for one that runs. It is told over all calls, for the patience of who makes each may be less than that."""
        now = time.monotonic()
        if start < now:
            self._waited += now - max(start, self._counted)
            self._counted = now
        over = wait_for(self._left, timeout=0).done
        if len(self._begun) >= self.count or any(self._left[job] == math.inf for job in over):  # a worker took one
            self._waited = 0.0
        self._left = {job: since for job, since in self._left.items() if job not in over}
        return self._waited > BEGIN_S or any(now - since > KILL_S * self.count for since in self._left.values())

    def close(self) -> None:
        """Kill the workers. A later call starts new ones."""
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                _stop(self._pool)
            self._pool = None

    def _end(self, pool: ProcessPool) -> None:
        """Kill the workers of a pool that is stopped. The next call starts others."""
        with self._lock:
            _stop(pool)

    def _running(self) -> ProcessPool:
        """The pool, in the place of one that broke too."""
        with self._lock:
            pool = self._pool if self._pid == os.getpid() else None
            if pool is None or not pool.active:
                if pool is not None:
                    _stop(pool)
                pool = _started(self.count, self._where)
                weakref.finalize(self, _stop, pool)
                self._pool, self._pid = pool, os.getpid()
            return pool


def worker_count(wanted: int) -> int:
    """Processes for a function that may run `wanted` times at once: as many as there are cores and at least two, so that one that hangs
    does not hold up the others."""
    return max(1, min(wanted, max(2, os.cpu_count() or 1)))


def _started(count: int, where: Reference) -> ProcessPool:
    """A pool that runs: the first call would start its workers on the event loop. Raises CannotCall."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    pool = ProcessPool(count, initializer=_prepare, initargs=[where], context=context)
    try:
        if pool.active:  # asked this, it starts
            return pool
        raise BrokenProcessPool("they ended at once")
    except (BrokenProcessPool, OSError) as error:
        _stop(pool)
        raise CannotCall(f"its worker processes cannot be started: {error.__cause__ or error}") from error


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    # Its threads are daemons; on one of them, where the collector may happen to run this, there is nothing to wait for.
    with contextlib.suppress(TimeoutError, RuntimeError):
        pool.join(STOP_S)  # a replacement that is just starting would complain about its parent on stderr


# ------------------------------------------------------------------------------------------------------- inside a worker process

_found: dict[Reference, Callable[..., Any] | str] = {}
"""The functions of this worker, or why one cannot be had."""


def _prepare(where: Reference) -> None:
    """Before the worker takes calls: what importing costs is on no call's time."""
    try:
        _found[where] = _find(where)
    except BaseException as error:  # SystemExit too: without a word, the next worker would end the same way, and the next
        _found[where] = f"a worker process cannot import it: {short_traceback(error)}"


def _find(where: Reference) -> Callable[..., Any] | str:
    if where.file is not None:
        load_plugin(where.file)
    else:
        importlib.import_module(where.module)
    module, name = REGISTRIES[where.kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    plugin = registry.loaded(where.id)
    if plugin is None:
        return f"a worker process imported {where.module} and found no {where.kind} {where.id!r} registered; register it there"
    function: Callable[..., Any] = plugin.function
    return function


def _call(where: Reference, sent: bytes) -> tuple[str, Any]:
    """(how it ended, value): "returned" a result or "failed" a Failure, pickled, "invalid" or "raised" a traceback, "unfit" a reason.

    Nothing else leaves: pebble raises what does in the process that asked, SystemExit too, and breaks where that cannot be read there.
    """
    function = _found[where]
    if isinstance(function, str):
        return "unfit", function
    try:
        return _answer(function, sent)
    except InvalidScore as error:
        return "invalid", short_traceback(error)
    except BaseException as error:
        return "raised", short_traceback(error)


def _answer(function: Callable[..., Any], sent: bytes) -> tuple[str, Any]:
    """What `_call` gives back of a call that ended with a result, a failure or without either. Raises what the function raised."""
    try:
        options, argument = pickle.loads(sent)
    except BaseException as error:  # an object's own methods raise whatever they do
        return "unfit", f"what it is called with cannot be read in a worker process: {type(error).__name__}: {said_by(error)}"
    try:
        how, value = "returned", partial(function, **options)(argument)
    except EpisodeFailure as error:
        how, value = "failed", error.failure
    try:
        return how, pickle.dumps(value)
    except BaseException as error:
        return "unfit", f"what it returned cannot be sent from a worker process: {type(error).__name__}: {said_by(error)}"
