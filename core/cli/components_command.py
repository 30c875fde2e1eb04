"""The `burnish env …` and `burnish rewards …` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.needs import needs_training
from burnish.cli.options import ArgOption, JsonOption, PluginOption

RewardArgument = Annotated[str, typer.Argument(metavar="ID", help="An id of `burnish rewards list`.", show_default=False)]


def register(env_app: typer.Typer, rewards_app: typer.Typer) -> None:
    """Add the commands to their groups."""
    env_app.command("list")(env_list)
    env_app.command("check")(env_check)
    env_app.command("baseline")(env_baseline)
    rewards_app.command("list")(rewards_list)
    rewards_app.command("show")(rewards_show)
    rewards_app.command("check")(rewards_check)
    rewards_app.command("try")(rewards_try)


def env_list(plugin: PluginOption = None, as_json: JsonOption = False) -> None:
    """List the environments that recipes can name."""
    from burnish.cli.components import environments

    environments(plugin or ()).print(as_json)


def env_check(
    id: Annotated[str, typer.Argument(metavar="ID", help="An id of `burnish env list`.", show_default=False)],
    arg: ArgOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold an environment to gymnasium's contract and to burnish's."""
    from burnish.cli.components import check_environment, print_reports

    print_reports(check_environment(id, arg or (), plugin or ()), as_json)


def env_baseline(
    id: Annotated[str, typer.Argument(metavar="ID", help="An environment that plays an ordinary one in text.", show_default=False)],
    arg: ArgOption = None,
    plugin: PluginOption = None,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of PPO, 4,000 environment steps each.")] = 80,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the agent's good episodes as conversations (*.jsonl).")] = None,
    demonstrations: Annotated[int, typer.Option(min=1, help="How many conversations to write.")] = 500,
    threshold: Annotated[float | None, typer.Option(help="Return from which an episode is good. Default: those that succeed.")] = None,
    tasks: Annotated[int, typer.Option(min=2, help="Held-out episodes to measure on.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the agent.")] = 0,
) -> None:
    """Train an ordinary PPO agent on the environment below the text: is it learnable, and how well can one do?"""
    needs_training("env baseline")
    from burnish.cli.arguments import parse_arguments
    from burnish.cli.baseline import BaselinePlan, run_baseline
    from burnish.envs.registry import load_plugin

    for file in plugin or ():
        load_plugin(file)
    run_baseline(id, parse_arguments(arg or ()), BaselinePlan(iterations, tasks, out, demonstrations, threshold, seed), typer.echo)


def rewards_list(plugin: PluginOption = None, as_json: JsonOption = False) -> None:
    """List the reward plug-ins that recipes can name."""
    from burnish.cli.components import rewards

    rewards(plugin or ()).print(as_json)


def rewards_show(id: RewardArgument, plugin: PluginOption = None, as_json: JsonOption = False) -> None:
    """Show what a reward is called with, its options, its level and its limits."""
    from burnish.cli.components import show_reward

    show_reward(id, plugin or ()).print(as_json)


def rewards_check(
    id: RewardArgument,
    arg: ArgOption = None,
    plugin: PluginOption = None,
    sample: Annotated[
        Path | None, typer.Option("--sample", metavar="FILE", help="Conversations it can score (as for `try`), instead of made-up ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a reward to its contract: equal scores for equal input, hostile episodes, concurrent calls, latency."""
    from burnish.cli.components import check_reward, print_reports

    print_reports(check_reward(id, arg or (), plugin or (), sample), as_json)


def rewards_try(
    id: RewardArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of rows, one conversation each.", show_default=False)],
    arg: ArgOption = None,
    plugin: PluginOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write every score or failure to this .jsonl file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the conversations of a file, without training. Exits with 1 when a row fails."""
    from burnish.cli.components import try_reward

    found, failed = try_reward(id, file, arg or (), plugin or (), out)
    found.print(as_json)
    if failed:
        raise typer.Exit(1)
