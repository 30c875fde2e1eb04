"""How a run goes on: from a checkpoint, after a guard has sent it back, and with another learner in the place of one that was lost."""

from __future__ import annotations

import json
from collections.abc import Callable

from burnish.inspector.runs import read_metrics
from burnish.rollout.store.records import read_evaluations, read_roll_backs
from burnish.run.alarms import GuardStop, RollBack
from burnish.run.display import say
from burnish.run.folder import RunFolder
from burnish.run.under_way import Run
from burnish.trainer.learner.group import LearnerLost
from burnish.trainer.models.checkpoints import CheckpointRecord, latest, prune
from burnish.trainer.models.finding import DIGEST
from burnish.trainer.models.manifest import own_manifest
from burnish.trainer.restarts import Restarts
from burnish.trainer.schedule.progress import PolicyProgress

Phases = Callable[[Run, CheckpointRecord | None], None]
"""The phases of a run from a checkpoint on, None for all of them."""
Reached = tuple[int, int]
"""How far a run has come: the number of its phase, and the step."""


def keep_going(run: Run, done: CheckpointRecord | None, phases: Phases) -> None:
    """The phases from a checkpoint on. A learner that dies or hangs is started once more, from what this run saved last: so often as
    `limits.restarts` allows, and as long as the run gets further each time; what fails at the same step again would do so for ever.

    Raises LearnerLost when there is to be no other.
    """
    limits = run.recipe.limits
    restarts, before, furthest = Restarts(limits.restarts, limits.restart_window_s), (-1, -1), (-1, -1)

    def went_back() -> None:
        nonlocal furthest
        furthest = max(furthest, _reached(run))

    while True:
        try:
            _with_roll_backs(run, done, phases, went_back)
            return
        except LearnerLost as lost:
            reached = _reached(run)
            if max(furthest, reached) <= before:
                raise LearnerLost(f"{lost}; the one before it was lost, too, and the run has got no further since") from lost
            if too_many := restarts.count():
                raise LearnerLost(f"{lost}; it {too_many}") from lost
            before, furthest, done = reached, (-1, -1), latest(run.folder.path)
            say(run.console, f"{lost}; it is started once more, from {done.name if done else 'the beginning of training'}")
            run.session.restart_learner()
            resume(run, done)


def _reached(run: Run) -> Reached:
    """The last step that was done and written down, before the first of the first phase where there is none."""
    order = [phase.name for phase in run.recipe.phases]
    rows = list(read_metrics(run.folder.metrics_file)) if run.folder.metrics_file.is_file() else []
    return (order.index(rows[-1].phase), rows[-1].step) if rows else (0, 0)


def _with_roll_backs(run: Run, done: CheckpointRecord | None, phases: Phases, went_back: Callable[[], None]) -> None:
    """The phases from a checkpoint on. Where a guard sends the run back, it goes on from what it saved last, with the tasks that come after
    those it had taken: the same ones would lead to the same place. The folder knows how often it did, so that one that is
    resumed goes on counting. went_back: called before each time, while the folder has what the run reached."""
    while True:
        try:
            phases(run, done)
            return
        except RollBack as back:
            before = len(read_roll_backs(run.folder.roll_backs_file))
            if before >= run.recipe.guards.roll_backs:
                raise GuardStop(f"{back}; the run went back {before} times already (guards.roll_backs)") from back
            went_back()
            run.folder.log_roll_back(back.row(run.session.loop.progress.position))
            done = latest(run.folder.path)
            run.session.algo.fleet.stop()
            resume(run, done)


def _with_other_tasks(progress: PolicyProgress, folder: RunFolder) -> PolicyProgress:
    """The progress with what the run has gone back from behind it: no task that had been taken by then is played again, nor what a
    checkpoint from before has open. One that was saved since is further on, for no step goes without other tasks."""
    beyond = max((one.position for one in read_roll_backs(folder.roll_backs_file)), default=-1)
    if progress.position <= beyond:
        progress.give_up()
        progress.position = beyond
    return progress


def _check_base(run: Run, done: CheckpointRecord) -> None:
    """Raise ValueError where the recipe's model is none that the checkpoint was made from: what a run folder stands for moves on."""
    made = own_manifest(done.model(run.folder.path))
    base = own_manifest(run.session.base) if made is not None else None
    if made is not None and base is not None and base.digest not in {one.digest for one in made.lineage}:
        known = ", ".join(f"{DIGEST}{one.digest[:12]}" for one in made.lineage) or "no model"
        raise ValueError(
            f"{run.folder.path} cannot resume: its model {run.recipe.model} is {DIGEST}{base.digest[:12]} by now, "
            f"which {done.name} was not made from; that was made from {known}"
        )


def resume(run: Run, done: CheckpointRecord | None) -> None:
    """Take over what a checkpoint holds, or the beginning of training without one; what came after is forgotten, and done again."""
    session, folder, order = run.session, run.folder, [phase.name for phase in run.recipe.phases]
    run.remembered = None
    run.store.flush()  # a file that is still being written would come after the rewind, and stay
    if done is None:
        if session.learner.version != 0:  # no checkpoint holds the weights that it has moved from
            session.restart_learner()
        session.loop.progress = _with_other_tasks(PolicyProgress(), folder)
        folder.rewind(order, "base")
    else:
        state = done.trainer_state(folder.path)
        position = json.loads((state / "progress.json").read_text())
        if position.get("tasks") != run.tasks_digest:
            raise ValueError(f"{folder.path} cannot resume: the files of [tasks] are not what they were when it was trained; restore them")
        _check_base(run, done)
        run.rebase(done.phase)
        session.learner.restore_from_path(state / "learner")
        session.loop.progress = _with_other_tasks(PolicyProgress.from_row(position), folder)
        run.remembered = position.get("guards")
        folder.rewind(order, done.phase, done.step, run.recipe.evaluation.mode_between)
        prune(folder.path, run.recipe.keep_checkpoints, run.recipe.best_by)  # a kill may have come between a checkpoint and this
    session.sync()
    recorded = read_evaluations(folder.evaluations_file) if folder.evaluations_file.is_file() else []
    # Of the phase that goes on, an evaluation of fewer steps is one of an older policy, whose phase was given more steps since.
    older = [record for record in recorded if done is not None and record.phase == done.phase and record.step != done.step]
    run.results = {(record.phase, record.result.mode): record.result for record in recorded if record not in older}
    say(run.console, f"resumed from {done.name if done else 'the beginning of training'}")
