"""What a run measured of a checkpoint after it was written, told to the checkpoint's manifest: evaluations, and suites of `[retention]`.

A manifest tells of its model, and is no part of it: its digest stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from burnish.rollout.store.records import read_evaluations
from burnish.run.folder import RunFolder
from burnish.run.retention import recorded
from burnish.trainer.models.checkpoints import latest
from burnish.trainer.models.folder import store_manifest
from burnish.trainer.models.manifest import Measurement, own_manifest


def tell_measured(folder: RunFolder, phase: str, step: int) -> None:
    """Write what was measured at the end of a phase into the manifest and card of its last checkpoint, where that is of this step."""
    checkpoint = latest(folder.path, phase)
    manifest = own_manifest(checkpoint.model(folder.path)) if checkpoint is not None and checkpoint.step == step else None
    measured = tuple(_measured(folder, phase, step))
    if checkpoint is not None and manifest is not None and manifest.measured != measured:
        store_manifest(checkpoint.model(folder.path), manifest.model_copy(update={"measured": measured}))


def tell_last(folder: RunFolder) -> None:
    """The same of a run that has ended: it may have been interrupted just before it told."""
    checkpoint = latest(folder.path)
    if checkpoint is not None:
        tell_measured(folder, checkpoint.phase, checkpoint.step)


def _measured(folder: RunFolder, phase: str, step: int) -> Sequence[Measurement]:
    evaluations = read_evaluations(folder.evaluations_file) if folder.evaluations_file.is_file() else []
    of_tasks = [one.result for one in evaluations if (one.phase, one.step) == (phase, step)]
    of_suites = [one for one in recorded(folder) if (one.phase, one.step) == (phase, step)]
    return [
        *(
            Measurement(
                what="success", how=one.mode, value=one.success, n=len(one.task_success), low=one.success_low, high=one.success_high
            )
            for one in of_tasks
        ),
        *(Measurement(what=one.suite, how=one.kind, value=one.after, n=one.items, retention=one.retention) for one in of_suites),
    ]
