"""The `burnish runs calibration` command, and its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from burnish.cli.needs import needs_training
from burnish.cli.options import JsonOption, ModeOption, PhaseOption, RunArgument, StepOption, print_json

if TYPE_CHECKING:
    from burnish.inspector.calibration import Calibration


def register(runs_app: typer.Typer) -> None:
    """Add the command to the group `runs`."""
    runs_app.command("calibration")(calibration)


def calibration(
    run: RunArgument,
    confidence: Annotated[
        Literal["answer", "token", "agreement"],
        typer.Option(
            help="How sure an answer was: the probability of its last turn, the mean probability of its tokens, or the share of a task's "
            "attempts that say the same."
        ),
    ] = "answer",
    part: Annotated[
        str | None,
        typer.Option(help="The part of the reward that is 1 where an answer is right. Default: the run's success.", show_default=False),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Tell answers apart by a field of the task's data.", show_default=False)
    ] = None,
    bins: Annotated[int, typer.Option(min=1, help="Of confidence, for the calibration error.")] = 10,
    phase: PhaseOption = None,
    step: StepOption = None,
    split: Annotated[Literal["train", "heldout"], typer.Option(help="Of training, or held out.")] = "heldout",
    mode: ModeOption = None,
    as_json: JsonOption = False,
) -> None:
    """How sure a run's answers were, and how often they were right: calibration error, and the risk when only the surest are given."""
    needs_training("runs calibration")
    from burnish.cli.answer import answer
    from burnish.inspector.calibration import calibrations
    from burnish.inspector.stored import Which
    from burnish.inspector.text import printable

    found = calibrations(run, Which(phase, step, split, mode), confidence, part, by, bins)
    if as_json:
        print_json(
            {"schema": 1, "run": run.resolve().name, "confidence": confidence, "bins": bins, "rows": [one.to_row() for one in found]}
        )
        return
    for line in table(found, by):
        answer(printable(line))


def table(found: Sequence[Calibration], by: str | None) -> Iterator[str]:
    """A row for each evaluation, step or value of the field that answers are told apart by."""
    from burnish.cli.models import table_lines
    from burnish.inspector.calibration import COVERAGES

    cells = [
        (
            one.moment.phase,
            str(one.moment.step),
            one.moment.mode,
            *([one.of] if by else []),
            str(one.answered),
            str(one.abstained),
            *([str(one.none)] if any(row.none for row in found) else []),
            *(_share(value) for value in (one.right, one.sure, one.error)),
            *(_share(one.risk(coverage)) for coverage in COVERAGES),
        )
        for one in found
    ]
    none = ["no answer"] if any(row.none for row in found) else []
    heads = ("phase", "step", "mode", *([by] if by else []), "answered", "abstained", *none, "right", "sure", "error")
    yield from table_lines((*heads, *(f"risk at {coverage:.0%}" for coverage in COVERAGES)), cells)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
