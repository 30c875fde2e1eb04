"""One episode in this process, on its main thread: breakpoints in an environment, its tools or a reward fire, and nothing hurries them.

What differs from a run: environments and rewards run on the thread of the event loop instead of threads and processes of their own, one
call at a time; deadlines of the recipe and of `@reward` are a day; nothing is tried again.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from burnish.envs.types import EpisodeGroup, Task
from burnish.recipe.rehearsal import first_task
from burnish.recipe.resolve import ResolvedRun
from burnish.rewards.build import PATIENT_S, make_rubric
from burnish.rollout.collect import collect
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine import make_engine
from burnish.rollout.engine.base import Engine, GenerateRequest
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.renderers import Renderer
from burnish.rollout.worker import WorkerSetup, episode_parts
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.models.finding import find_model

SAID = "yes"
"""What is said in every turn when nobody says what."""

Asked = Callable[[int], str]
"""What to say in a turn, counted from 1."""


def debug(run: ResolvedRun, addresses: Mapping[str, str], task: Task, say: Asked | None) -> EpisodeGroup:
    """Play one task, once, or as often as rewards that compare attempts need.

    say: the words of each turn; None asks the recipe's model, in this process. addresses: of the recipe's services. Raises ValueError when
    the recipe's parts do not fit.
    """
    model = find_model(run.model, need_weights=say is None)
    setup = run.worker_setup(model, addresses, seed=run.seed)
    limits = run.rollout.model_copy(update={"episode_timeout_s": PATIENT_S, "step_timeout_s": PATIENT_S, "retries": 0, "concurrency": 1})
    setup = replace(setup, rollout=limits)
    parts = episode_parts(setup, lambda renderer: _engine(setup, renderer, say), Here())
    rubric = make_rubric(setup.rewards, setup.environment_weight, 0, patient=True)
    with _interrupted_at_once():
        return asyncio.run(_played(replace(parts, rubric=rubric), task, limits.temperature))


def task_named(run: ResolvedRun, name: str | None) -> Task:
    """The task of a seed, or of a row of the recipe's files by its id; the one that a rehearsal takes where none is named.

    Raises ValueError when there is no such task.
    """
    if name is None:
        return first_task(run)
    if run.tasks.files is None:
        if not name.isascii() or not name.isdigit() or int(name) >= 2**31:
            raise ValueError(f"--task {name}: tasks are made from seeds here; give a whole number below 2^31")
        return Task(f"debug-{name}", int(name))
    files = read_task_files(run.tasks.files)
    found = [row for row in (*files.held_out, *files.train) if row.id == name]
    if not found:
        raise ValueError(f"--task {name}: no row of {run.tasks.files.train} or {run.tasks.files.held_out} has this id")
    return Task(found[0].id, 0, found[0].messages, found[0].data)


def in_order(said: Sequence[str]) -> Asked:
    """These, one a turn, the last one for all that follow."""
    left = deque(said or [SAID])
    return lambda turn: left.popleft() if len(left) > 1 else left[0]


class Here(Executor):
    """Runs what it is given at once, where it is asked: on the thread in which a debugger listens."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # Ctrl-C passes
            future.set_exception(error)
        return future


def _engine(setup: WorkerSetup, renderer: Renderer, say: Asked | None) -> Engine:
    if say is None:
        return make_engine(setup.engine, setup.model, "debug")

    def said(request: GenerateRequest) -> list[int]:
        turn = int(request.request_id.rpartition("/")[2]) + 1
        return [*renderer.encode(say(turn)), *request.stop_token_ids[:1]]

    return ScriptedEngine(said, name="debug", max_context=setup.engine.max_context, timeout_s=PATIENT_S)


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Ctrl-C ends what runs on this thread, where asyncio would only cancel what waits: that is somebody's typing, or an environment."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _played(parts: EpisodeParts, task: Task, temperature: float) -> EpisodeGroup:
    try:
        async for group in collect(parts, [task], parts.rubric.min_members, temperature):
            return group
    finally:
        await parts.engine.close()
    raise AssertionError("one task makes one group")
