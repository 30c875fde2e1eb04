"""Which settings may be others when a run resumes: more steps of a phase that can go on, and what no result depends on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from burnish.recipe.plan import Done
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.store.records import read_evaluations
from burnish.rollout.store.sole_driver import sole_driver
from burnish.run.folder import Difference, RunFolder, open_run
from burnish.run.retention import is_judged
from burnish.trainer.models.checkpoints import CheckpointRecord, latest
from burnish.trainer.phases.registry import KINDS

FREE = ("limits", "keep_checkpoints", "episodes", "tracking")
"""Tables and keys that a run may resume with other values of: they decide how long it waits, what it keeps and who is
told, not what it computes."""


def changes(path: Path, run: ResolvedRun) -> list[Difference]:
    """The settings of `run` that are others than those the run in folder `path` began with, all of which may be.

    Raises ValueError naming those that may not: everything that decides what has been computed so far.
    """
    folder = open_run(path)
    found = list(folder.differences(run))
    more_steps = [one for one in found if _raises_steps(one)]
    folder.refuse([one for one in found if one not in more_steps and one.field.partition(".")[0] not in FREE])
    done = latest(path)
    for change in more_steps:
        table = change.field.removesuffix(".steps").rpartition(".")[2]
        name = run.phases[int(table)].name if table.isdigit() else next(one.name for one in run.phases if one.table.kind == table)
        problem = _why_no_more(folder, run, name, done)
        if problem is not None:
            raise ValueError(f"{path} cannot resume with {change}: {problem}")
    return found


@contextmanager
def driven(path: Path, run: ResolvedRun, resume: bool, say: Callable[[str], None]) -> Iterator[RunFolder]:
    """The folder of a run for this process alone; when it resumes, with the settings of `run`, and a line for each that is another.

    Raises AlreadyDriven, with nothing of the folder changed, and ValueError where `run` is not the run of the folder (see `changes`).
    """
    folder = open_run(path)
    with sole_driver(path, say):
        found = changes(path, run) if resume else []
        if resume:
            folder.take_over(run)
        else:
            open_run(path, run)
        for change in found:
            say(f"resumes with another setting, {change}")
        yield folder


def is_finished(folder: RunFolder, run: ResolvedRun) -> bool:
    """Whether a resume would find nothing to do: the last phase has ended, and what the recipe measures after it was measured."""
    done, last = latest(folder.path), run.phases[-1]
    if done is None or done.phase != last.name or (done.step < last.table.steps and not done.ended):
        return False
    measured = _measured(folder, done)
    return (not run.evaluation.after or set(run.evaluation.modes) <= measured) and is_judged(folder, run, last.name, done.step)


def behind(path: Path, run: ResolvedRun) -> Done | None:
    """What the run in folder `path` has behind it when it resumes, None when it begins anew."""
    done = latest(path)
    if done is None:
        return None
    asked = frozenset(run.evaluation.modes if run.evaluation.after else ())
    return Done(done.phase, done.step, bool(done.ended), _measured(open_run(path), done) & asked)


def _measured(folder: RunFolder, done: CheckpointRecord) -> frozenset[str]:
    """The modes that were evaluated at a checkpoint."""
    recorded = read_evaluations(folder.evaluations_file) if folder.evaluations_file.is_file() else []
    return frozenset(record.result.mode for record in recorded if (record.phase, record.step) == (done.phase, done.step))


def _raises_steps(change: Difference) -> bool:
    steps_of_a_phase = re.fullmatch(rf"({'|'.join(KINDS)}|phases\.\d+)\.steps", change.field)
    return steps_of_a_phase is not None and change.old is not None and change.new is not None and change.new > change.old


def _why_no_more(folder: RunFolder, run: ResolvedRun, phase: str, done: CheckpointRecord | None) -> str | None:
    """Why a phase cannot get more steps, None when it can. done: the checkpoint that the run resumes from."""
    names = [one.name for one in run.phases]
    if done is None or names.index(phase) > names.index(done.phase):
        return None  # it begins after the resume
    if phase != done.phase:
        return f"{phase} has ended, and {done.phase} went on from it"
    table = next(one.table for one in run.phases if one.name == phase)
    if table.schedule != "constant":
        return f"{phase} is at step {done.step} of a {table.schedule} schedule that was laid out over all of its steps"
    if done.weights_of is not None:
        return f"it ended with the weights of step {done.weights_of}, the best of it"
    if done.ended:
        return f"it ended early, at step {done.step}: {done.ended}"
    wanted = table.supervised_rows
    if wanted is not None and wanted.rows.generate is not None and wanted.rows.count is None:
        return "its examples were generated for its steps, and others would have been made for more; a recipe that gives `count` can go on"
    return None
