"""What `burnish data contamination` looks for in training rows, beside rows of files: the items of suites, and what a recipe measures
with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.envs.contract import make_env, reset_env
from burnish.envs.failures import EpisodeFailure
from burnish.envs.types import Message, Task
from burnish.recipe.recorded import load_recipe
from burnish.recipe.resolve import resolve
from burnish.rpc.address import service_references
from burnish.trainer.data.task_files import read_task_files
from burnish.trainer.data.tasks import held_out_tasks
from burnish.trainer.evaluation.suites.finding import find_suites
from burnish.trainer.evaluation.suites.suite import Suite


@dataclass(frozen=True, slots=True)
class AskedItem:
    """An item of an evaluation: where it stands, and what it asks. Example: `AskedItem("burnish/choices-v1:3", "Which of these is …")`."""

    where: str
    asked: str


def of_suites(names: Sequence[str]) -> Iterator[AskedItem]:
    """As many items of each suite as it asks unless told otherwise. Raises ValueError when there is none of a name."""
    for suite in find_suites(names):
        yield from _of_suite(suite)


def of_recipe(file: Path, trust: bool = False) -> tuple[list[AskedItem], list[str]]:
    """The held-out tasks of a recipe's evaluation and as many items as its `[retention]` asks, and the places of rows that its phases hold
    out.

    trust: whether one that lies in a run folder may name what that folder may not (`load_recipe`). Raises ValueError when the recipe is
    unfit, names what it may not, or its tasks cannot be had.
    """
    run = resolve(load_recipe(file, (), (), trust))
    table, files = run.evaluation, run.tasks.files
    tasks = held_out_tasks(table.seeds, table.tasks) if files is None else read_task_files(files).held_out_tasks(table.tasks)
    asked = list(_asked(tasks, run.environment.id, run.environment.args, str(file)))
    items = run.retention.items if run.retention is not None else None
    asked += [question for suite in run.suites for question in _of_suite(suite, items)]
    rows = (phase.table.supervised_rows for phase in run.phases)
    return asked, [one.held_out for one in rows if one is not None and one.held_out is not None]


def _of_suite(suite: Suite, items: int | None = None) -> Iterator[AskedItem]:
    """items: how many of them are asked, as many as the suite says when None."""
    count = items or suite.items
    if suite.tasks is not None:
        yield from _asked(suite.tasks(count), suite.environment, suite.environment_args, suite.id)
        return
    assert suite.texts is not None
    for i, text in enumerate(suite.texts(count)):
        yield AskedItem(f"{suite.id}:{i}", text.text)


def _asked(tasks: Sequence[Task], environment: str, args: Mapping[str, Any], of: str) -> Iterator[AskedItem]:
    """What each task asks: its own prompt, or what its environment begins with. Raises ValueError when that cannot be had."""
    bare = [task for task in tasks if not task.prompt]
    yield from (AskedItem(f"{of}:{task.id}", _said(task.prompt)) for task in tasks if task.prompt)
    if not bare:
        return
    service = next(service_references(args), None)
    if service is not None:
        raise ValueError(f"{of}: what {environment} asks comes from the service {service!r}; give its questions as rows, by --against")
    with closing(make_env(environment, **args)) as env:
        for task in bare:
            try:
                messages, _ = reset_env(env, environment, task)
            except EpisodeFailure as error:
                raise ValueError(f"{of}: the task {task.id} cannot be had: {error}") from error
            yield AskedItem(f"{of}:{task.id}", _said(messages))


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(message.text for message in messages if message.role == "user")
