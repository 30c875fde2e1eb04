"""The `burnish debug` command."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.needs import needs_engine, needs_training
from burnish.cli.options import JsonOption, PluginOption, SetOption, TrustOption, print_json

FAILED = 1
"""Exit code when the episode failed."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("debug")(debug)


def debug(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe (*.toml), or a run: its recipe, as it ran.", show_default=False)
    ],
    task: Annotated[str | None, typer.Option(metavar="TASK", help="A seed, or the id of a row of the recipe's files.")] = None,
    say: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What the policy says, a turn each; the last is repeated.")] = None,
    ask: Annotated[bool, typer.Option("--ask", help="Type what the policy says, turn by turn.")] = False,
    model: Annotated[bool, typer.Option("--model", help="Let the recipe's model speak, in this process.")] = False,
    set_: SetOption = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play one episode in one process, where breakpoints in environment, tools and rewards fire. Exits with 1 when it fails."""
    if sum((bool(say), ask, model)) > 1:
        raise ValueError("--say, --ask and --model are three ways to say what the policy says; give one")
    needs_engine("debug --model") if model else needs_training("debug")
    from burnish.cluster import check_played, services_of, worlds_of
    from burnish.envs.failures import Failure
    from burnish.recipe.recorded import load_recipe
    from burnish.recipe.resolve import resolve
    from burnish.run.debugging import debug as play
    from burnish.run.debugging import in_order, task_named
    from burnish.run.display import new_console

    run = resolve(load_recipe(recipe, set_ or (), plugin or (), trust))
    speaker = None if model else _typed(err=as_json) if ask else in_order(say or [])
    chosen = task_named(run, task)
    with tempfile.TemporaryDirectory(prefix="burnish-debug-") as logs, services_of(run.services, Path(logs)) as addresses:
        check_played([worlds_of(run)[""]], addresses, run.limits.check_s)
        group = play(run, addresses, chosen, speaker)
    from burnish.inspector.terminal import render
    from burnish.rollout.store.transcripts import transcript_of

    transcripts = [transcript_of(episode, run=run.name, phase="debug", step=0) for episode in group.episodes]
    if as_json:
        print_json([transcript.to_row() for transcript in transcripts])
    else:
        for transcript in transcripts:
            new_console().print(render(transcript, tools=True))
    if any(isinstance(episode.outcome, Failure) for episode in group.episodes):
        raise typer.Exit(FAILED)


def _typed(err: bool) -> Callable[[int], str]:
    """What somebody types for each turn. err: whether it is asked for on stderr."""

    def ask(turn: int) -> str:
        try:
            return str(typer.prompt(f"turn {turn}, the policy says", prompt_suffix=": ", default="", show_default=False, err=err))
        except typer.Abort as error:
            typer.echo(err=err)  # what comes begins a line
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise ValueError(f"--ask: the input ended before anything was said in turn {turn}; give the words by --say") from None

    return ask
