"""What a run did not measure, in sentences: so that nobody reads more into its figures than is in them."""

from __future__ import annotations

from collections.abc import Iterator

from ..rollout.store.held_out import SUCCESS
from ..rollout.store.records import EvaluationRecord
from .rendering import phase_title
from .runs import RecordedRun, final_evaluations, phases_of

WIDE = 0.05
"""Half an interval of success that is worth a sentence: a change of five points may be none."""
HELD_OUT_ROWS = ("held_out_loss_before", "held_out_loss")
"""Metrics of rows that a phase on examples does not train on."""


def unmeasured(run: RecordedRun) -> list[str]:
    """What is missing from the figures of a run, the weightiest first.

    Example: `"Answers at temperature 0 (greedy): success is of answers sampled as in training."`.
    """
    return [*_held_out(run), *_modes(run), *_precision(run), *_beyond(run)]


def _held_out(run: RecordedRun) -> Iterator[str]:
    between = {row.phase for row in run.metrics if SUCCESS in row.values}
    if not run.evaluations:
        rows = any(name in row.values for row in run.metrics for name in HELD_OUT_ROWS)
        others = {"the loss of rows that were held out": rows, "the skills that were to be kept": bool(run.retention)}
        but = [what for what, there in {"held-out tasks that were played between steps": bool(between), **others}.items() if there]
        yield f"Held-out tasks: every figure here is of tasks that were trained on{', but for ' if but else ''}{' and '.join(but)}."
        return
    evaluated = phases_of(run.evaluations)
    trained = phases_of(run.metrics)
    if "base" not in evaluated:
        yield "The model before any training: what all phases changed together is not known."
    without = [phase_title(phase).lower() for phase in trained if phase not in evaluated and phase not in between]
    if without:
        yield f"Held-out tasks after {' and '.join(without)}: what {'it' if len(without) == 1 else 'each'} changed is not known by itself."


def _modes(run: RecordedRun) -> Iterator[str]:
    modes = {record.result.mode for record in run.evaluations}
    if modes == {"sampled"}:
        yield "Answers at temperature 0 (greedy): success is of answers sampled as in training."
    if modes == {"greedy"}:
        yield "Sampled answers: success is of the one answer at temperature 0, and not of what other temperatures give."


def _precision(run: RecordedRun) -> Iterator[str]:
    """Of the last evaluation in each mode: how little it tells, and what is in none of its means."""
    for mode in dict.fromkeys(record.result.mode for record in run.evaluations):
        yield from _of_one([*final_evaluations(run.evaluations, mode).values()][-1])


def _of_one(record: EvaluationRecord) -> Iterator[str]:
    result, tasks = record.result, len(record.result.task_success)
    half = (result.success_high - result.success_low) / 2
    if half > WIDE:
        yield (
            f"Small changes: {tasks} held-out task{'s' * (tasks != 1)} ({result.mode}) tell success to within {100 * half:.0f} points "
            "either way."
        )
    failed = result.episodes - result.rewarded
    if failed > 0:
        yield f"{failed} of {result.episodes} episodes of the last {result.mode} evaluation, which failed and are in none of its means."


def _beyond(run: RecordedRun) -> Iterator[str]:
    if not run.retention:
        yield "What else the model could do before: no skill beside the task was measured, so what it forgot is not known."
    yield "Another seed: this is one run, and the intervals say nothing of how others of the same recipe would end."
