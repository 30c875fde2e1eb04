"""Which tasks are trained on, in which order: pure functions of a position, so that a resumed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...envs.types import Task
from .blend import Blend
from .config import OWN
from .supervised import shuffled_batch
from .task_files import TaskRow

SMALL_RANGE = 1_000_000

TaskStream = Callable[[int, int], list[Task]]
"""The tasks of an endless stream from a position on: `stream(position, count)`."""


def training_tasks(seeds: tuple[int, int], seed: int, position: int, count: int) -> list[Task]:
    """The tasks at `position`, `position + 1`, … of an endless seeded stream over the half-open range `seeds`.

    Small ranges are visited in epochs, every seed once per epoch; from large ones, seeds are drawn independently.
    """
    return [Task(f"train-{p}", _seed_at(seeds, seed, p)) for p in range(position, position + count)]


def row_tasks(rows: Sequence[TaskRow], seed: int, position: int, count: int) -> list[Task]:
    """The tasks at `position`, `position + 1`, … of an endless seeded stream over the rows of a file, every row once per epoch."""
    tasks = []
    for p in range(position, position + count):
        row = rows[int(shuffled_batch(len(rows), 1, seed, p)[0])]
        tasks.append(Task(f"train-{p}:{row.id}", p % 2**31, row.messages, row.data))
    return tasks


def blended_tasks(blend: Blend, streams: Mapping[str, TaskStream], position: int, count: int) -> list[Task]:
    """The tasks at `position`, `position + 1`, … of streams that are blended, by the names of their environments; the recipe's own is
    `OWN`. Each stream gives its tasks in its own order, and their ids begin with the place in the blend."""
    tasks = []
    for p in range(position, position + count):
        draw = blend.at(p)
        name = blend.names[draw.source]
        (task,) = streams[name](draw.ordinal, 1)
        said = task.id.partition(":")[2] or str(task.seed)
        environment = "" if name == OWN else name
        tasks.append(replace(task, id=f"train-{p}:{f'{name}-' if environment else ''}{said}", environment=environment))
    return tasks


def held_out_tasks(seeds: tuple[int, int], count: int) -> list[Task]:
    """The first `count` tasks of the held-out range: the same ones in every evaluation, so that results can be paired."""
    return [Task(f"heldout-{s}", s) for s in range(seeds[0], seeds[0] + count)]


def _seed_at(seeds: tuple[int, int], seed: int, position: int) -> int:
    first, end = seeds
    if end - first <= SMALL_RANGE:
        return first + int(shuffled_batch(end - first, 1, seed, position)[0])
    return int(np.random.default_rng([seed, position]).integers(first, end))
