"""The `burnish rollouts` command."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from burnish.cli.needs import needs_episodes
from burnish.cli.options import JsonOption, ModeOption, PhaseOption, RunArgument, SplitOption, StepOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("rollouts")(rollouts)


def rollouts(
    run_folder: RunArgument,
    phase: PhaseOption = None,
    step: StepOption = None,
    episode: Annotated[str | None, typer.Option(help="Id of one episode, such as train-17/0.")] = None,
    split: SplitOption = None,
    mode: ModeOption = None,
    failed: Annotated[bool | None, typer.Option("--failed/--rewarded", help="Only failed, or only rewarded episodes.")] = None,
    order: Annotated[Literal["latest", "best", "worst"], typer.Option(help="Which to show first.")] = "latest",
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    prompt: Annotated[bool, typer.Option("--prompt", help="Show the tools, too, that the prompt describes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print transcripts of a run."""
    needs_episodes("rollouts")
    from burnish.inspector.terminal import Selection, print_rollouts, selected

    selection = Selection(phase, step, episode, split, mode, failed, order, limit)
    if not as_json:
        print_rollouts(run_folder, selection, tools=prompt)
        return
    if prompt:
        raise ValueError("--prompt has no effect with --json, which prints the tools anyway")
    print_json([transcript.to_row() for transcript in selected(run_folder, selection)])
