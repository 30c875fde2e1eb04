"""Where a checkpoint's model comes from, as its manifest says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from burnish.recipe.phase_run import PhaseRun
from burnish.run.data_used import data_used
from burnish.run.under_way import Run
from burnish.trainer.models.folder import Origin, manifest_of
from burnish.trainer.models.manifest import Training, json_sha256


def origin_of(run: Run, phase: PhaseRun, rows: Sequence[Mapping[str, float]], metrics: Mapping[str, float]) -> Origin:
    """What the manifest of a checkpoint says: it was made by the steps of this phase that `rows` tell of, from the last checkpoint of the
    phase before, or from the base."""
    parent, step = manifest_of(run.begun_from(phase.name)), len(rows)
    data, recipe = data_used(run, phase.table, rows), json_sha256(run.recipe.record)
    training = Training(run=run.name, phase=phase.name, kind=phase.kind.kind, step=step, recipe_sha256=recipe, data=data)
    name, source = f"{run.recipe.name}-{phase.name}", f"{run.name}/{phase.name}-{step}"
    return Origin(name=name, stage=phase.kind.stage, source=source, parents=(parent,), training=training, metrics=metrics)
