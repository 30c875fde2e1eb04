"""Calling a user's function from an event loop: under its deadline, so many at once, and every way it can go wrong told apart."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard, TypeVar

import numpy as np

from ...envs.callables import is_async, written
from ...envs.failures import EpisodeFailure, Failure, FailureKind, said_by, short_traceback
from ...envs.places import places
from ...rpc.user_code import is_asked_for
from ..types import InvalidScore, RewardInput, Score, as_score, turns_of
from .processes import CannotCall, Died, Raised, Reference, Workers, worker_count
from .threads import Worker, start

T = TypeVar("T")

MAX_ABANDONED_THREADS = 16  # a thread cannot be stopped: past this many hung calls a plug-in fails at once instead of leaking more


class Fault(Exception):
    """What went wrong with one call, before it is known which tasks it concerns. The text is the detail of the failure."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _Late(Exception):
    """The deadline passed; kept apart from a TimeoutError that the function itself raises."""


@dataclass
class _Job:
    """A call in a thread, its answer delivered to the loop that waits for it."""

    call: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[tuple[bool, Any]]
    finished: bool = False

    def run(self) -> None:
        try:
            outcome = (True, self.call())
        except BaseException as error:  # SystemExit too: it would end this thread without an answer
            outcome = (False, error)
        self.finished = True
        with contextlib.suppress(RuntimeError):  # the loop may have closed since the deadline
            self.loop.call_soon_threadsafe(self._deliver, outcome)

    def _deliver(self, outcome: tuple[bool, Any]) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Caller:
    """Calls one reward function with its options set: async ones on the loop, sync ones in a daemon thread, or in worker processes.

    timeout_s: seconds one call may take, from when it starts. max_concurrent: calls at once; the rest wait their turn. isolated: where
    worker processes find the function, to call it there.
    """

    def __init__(
        self,
        id: str,
        function: Callable[..., Any],
        options: Mapping[str, Any],
        timeout_s: float,
        max_concurrent: int,
        isolated: Reference | None = None,
    ) -> None:
        self.id = id
        self.timeout_s = timeout_s
        self._function = partial(function, **options)
        self._defined = _where_defined(function)
        self._is_async = is_async(function)
        self._workers = Workers(isolated, options, worker_count(max_concurrent)) if isolated else None
        self._slots = asyncio.Semaphore(self._workers.count if self._workers else max_concurrent)
        self._late: list[_Job] = []

    async def call(self, argument: Any) -> Any:
        """What the function returned. Raises Fault (its kind a REWARD_…), or the EpisodeFailure that the function raised."""
        async with self._slots:
            try:
                if self._workers is not None:
                    return await self._in_process(self._workers, argument)
                return await (self._on_loop(argument) if self._is_async else self._in_thread(argument))
            except EpisodeFailure:
                raise
            except _Late as error:
                raise Fault(FailureKind.REWARD_TIMEOUT, str(error)) from None
            except InvalidScore as error:
                raise Fault(FailureKind.REWARD_INVALID, short_traceback(error)) from error
            except Fault:
                raise
            except Exception as error:
                raise Fault(FailureKind.REWARD_ERROR, short_traceback(error)) from error

    def read(self, result: object, episode: RewardInput | None = None) -> Score:
        """One result as a score of `episode`, or, without one, of a single turn. Raises Fault (REWARD_INVALID) when it is none."""
        try:
            score = as_score(result)
        except InvalidScore as error:
            raise self.invalid(str(error)) from error
        except BaseException as error:  # a mapping of the user's own may do anything
            if is_asked_for(error):
                raise
            raise Fault(FailureKind.REWARD_INVALID, short_traceback(error)) from error
        if score.turns:
            turns = len(turns_of(episode)) if episode is not None else 0
            if len(score.turns) != turns:
                has = f"the episode has {turns}" if episode is not None else "a single turn has none"
                raise self.invalid(f"turns of the score has {len(score.turns)} values, {has}")
        return score

    def read_all(self, result: object, episodes: Sequence[RewardInput]) -> list[Score | Failure]:
        """A sequence of results, one per episode in order. An item that is an exception, a failure or no score fails its episode only.

        Raises Fault (REWARD_INVALID) when it is no sequence or has another length.
        """
        if not _is_list(result):
            raise self.invalid(f"the function must return one result per episode, a list of {len(episodes)}, not {type(result).__name__}")
        if len(result) != len(episodes):
            raise self.invalid(f"{len(result)} results for {len(episodes)} episodes; the function must return one for each, in their order")
        return [self._item(item, episode) for item, episode in zip(result, episodes, strict=True)]

    def _item(self, item: object, episode: RewardInput) -> Score | Failure:
        if isinstance(item, Failure):
            return item
        if isinstance(item, EpisodeFailure):
            return item.failure
        task = episode.task.id
        if isinstance(item, Exception):
            return self.failure(Fault(FailureKind.REWARD_ERROR, short_traceback(item)), task)
        try:
            return self.read(item, episode)
        except Fault as fault:
            return self.failure(fault, task)

    def invalid(self, detail: str) -> Fault:
        return Fault(FailureKind.REWARD_INVALID, f"{detail}\n  {self._defined}")

    def failure(self, fault: Fault, task: str) -> Failure:
        """The failure of one task's scoring."""
        return Failure(fault.kind, self.id, f"task {task}: {fault}")

    async def _on_loop(self, argument: Any) -> Any:
        task = asyncio.ensure_future(_contained(self._function, argument))
        task.add_done_callback(_retrieve)
        try:
            # asyncio.wait, not wait_for: a function that swallows its cancellation must not hold the rollout.
            done, _ = await asyncio.wait({task}, timeout=self.timeout_s)
            if not done:
                raise self._too_late(_where_waiting(task))
            if task.cancelled():
                raise RuntimeError("the reward function cancelled itself")
            if (error := task.exception()) is not None:
                raise _contained_error(error)
            return task.result()
        finally:
            task.cancel()

    async def _in_thread(self, argument: Any) -> Any:
        self._late = [job for job in self._late if not job.finished]
        if len(self._late) >= MAX_ABANDONED_THREADS:
            raise _Late(
                f"{len(self._late)} earlier calls are still running past their deadline of {self.timeout_s:g} s; "
                'isolation = "process" would have stopped them'
            )
        loop = asyncio.get_running_loop()
        job = _Job(partial(contextvars.copy_context().run, self._function, argument), loop, loop.create_future())
        worker = start(f"reward {self.id}", job.run)
        try:
            done, _ = await asyncio.wait({job.answer}, timeout=self.timeout_s)
            if not done:
                raise self._too_late(_where_hung(worker, job))
        finally:
            if not job.answer.done():
                job.answer.cancel()
                self._late.append(job)
        ok, value = job.answer.result()
        if ok:
            return value
        raise _contained_error(value)

    async def _in_process(self, workers: Workers, argument: Any) -> Any:
        try:
            return await workers.call(argument, self.timeout_s)
        except TimeoutError as error:
            raise _Late(str(error)) from None
        except InvalidScore as error:
            raise Fault(FailureKind.REWARD_INVALID, str(error)) from None
        except (Died, Raised, CannotCall) as error:
            raise Fault(FailureKind.REWARD_ERROR, str(error)) from None

    def _too_late(self, where: Sequence[str]) -> _Late:
        return _Late("\n".join([f"no answer within {self.timeout_s:g} s", *where]))


async def together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, run at once, in order. Raises what the first one to fail raised; the others are then cancelled."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _is_list(result: object) -> TypeGuard[Sequence[object]]:
    if isinstance(result, np.ndarray):
        return result.ndim > 0
    return isinstance(result, Sequence) and not isinstance(result, str | bytes)


def _where_hung(worker: Worker, job: _Job) -> list[str]:
    return [] if job.finished else worker.where()


def _where_waiting(task: asyncio.Task[Any]) -> list[str]:
    frames, coroutine = [], task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.append((frame, frame.f_lineno))
        coroutine = coroutine.cr_await  # type: ignore[union-attr]  # it has a frame, so it is a coroutine
    return places(frames, 3)


async def _contained(function: Callable[..., Any], argument: Any) -> Any:
    """SystemExit out of a task would end the event loop, and with it every other episode."""
    try:
        return await function(argument)
    except (SystemExit, KeyboardInterrupt) as error:
        if is_asked_for(error):
            raise
        raise _contained_error(error) from error


def _contained_error(error: BaseException) -> Exception:
    """The error itself, or, of one that would end more than this call, such as SystemExit or GeneratorExit, one that says it."""
    if isinstance(error, Exception):
        return error
    said = RuntimeError(f"the reward function raised {type(error).__name__}: {said_by(error)}")
    said.__cause__ = error
    return said


def _where_defined(function: Callable[..., Any]) -> str:
    inner = written(function)
    code, name = getattr(inner, "__code__", None), getattr(inner, "__qualname__", repr(function))
    return f"at {code.co_filename}:{code.co_firstlineno} in {name}" if code is not None else f"in {name}"


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Look at the result of an abandoned task, so that asyncio does not report it as forgotten."""
    if not task.cancelled():
        task.exception()
