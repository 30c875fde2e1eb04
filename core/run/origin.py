"""Where a checkpoint's model comes from, as its manifest says it."""

from __future__ import annotations

from collections.abc import Mapping

from burnish.recipe.phase_run import PhaseRun
from burnish.run.under_way import Run
from burnish.trainer.models.folder import Origin, manifest_of
from burnish.trainer.models.manifest import DataUse, Training, json_sha256
from burnish.trainer.phases.rft import RFTPhaseConfig


def origin_of(run: Run, phase: PhaseRun, step: int, metrics: Mapping[str, float]) -> Origin:
    """What the manifest of a checkpoint says: it was made by this phase, from the last checkpoint of the phase before, or from the base."""
    parent = manifest_of(run.begun_from(phase.name))
    data = run.data[phase.name].uses if phase.name in run.data else ()
    if isinstance(phase.table, RFTPhaseConfig):
        data = (*_tasks_used(run), *data)
    recipe = json_sha256(run.recipe.record)
    training = Training(run=run.name, phase=phase.name, kind=phase.kind.kind, step=step, recipe_sha256=recipe, data=data)
    name, source = f"{run.recipe.name}-{phase.name}", f"{run.name}/{phase.name}-{step}"
    return Origin(name=name, stage=phase.kind.stage, source=source, parents=(parent,), training=training, metrics=metrics)


def _tasks_used(run: Run) -> tuple[DataUse, ...]:
    tasks, files = run.recipe.tasks, run.session.files
    if tasks.files is not None and files is not None:
        return (DataUse(source=tasks.files.train, sha256=files.digest, examples=len(files.train)),)
    return (DataUse(source=f"{run.recipe.environment.id}, seeds {tasks.train_seeds[0]} to {tasks.train_seeds[1] - 1}"),)
