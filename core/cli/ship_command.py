"""The `burnish package` and `burnish promote` commands: a model as it is shipped, and its way into a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.needs import needs_training
from burnish.cli.options import JsonOption, PluginOption, print_json

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, a model folder, or a name under models/.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("package")(package)
    app.command("promote")(promote)


def package(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.", show_default=False)],
    policy: Annotated[str, typer.Option(metavar="FILE", help="The guardrail policy that it is served with.", show_default=False)] = "",
    guardrail: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `burnish guard evaluate --out` wrote of this model and policy.", show_default=False),
    ] = None,
    min_success: Annotated[
        float | None, typer.Option(min=0, max=1, help="On the run's held-out tasks. Default: the base's.", show_default=False)
    ] = None,
    max_attack_success: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of attacks that are answered. Default: 0.1.", show_default=False)
    ] = None,
    max_over_refusal: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of benign prompts that are refused. Default: 0.1.", show_default=False)
    ] = None,
    min_attack_drop: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the base's attack success that must be gone, such as 0.6.", show_default=False),
    ] = None,
    max_over_refusal_rise: Annotated[
        float | None, typer.Option(min=0, max=1, help="How much more may be refused than by the base, such as 0.03.", show_default=False)
    ] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint with its policy, what was measured, and a verdict on it into one folder. Exits with 1 unless it passed."""
    needs_training("package")
    from burnish.envs.registry import load_plugin
    from burnish.inspector.text import printable
    from burnish.serving.package import GateLimits, verdict_lines, write_package

    for file in plugin or ():
        load_plugin(file)
    limits = GateLimits(min_success, max_attack_success, max_over_refusal, min_attack_drop, max_over_refusal_rise)
    written = write_package(checkpoint, out, policy, guardrail, limits)
    if as_json:
        print_json({"folder": str(written.folder), "passed": written.verdict.passed, **written.verdict.model_dump(mode="json")})
    else:
        typer.echo("\n".join(printable(line) for line in verdict_lines(written)))
    if not written.verdict.passed:
        raise typer.Exit(1)


def promote(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Of `burnish package`.", show_default=False)],
    deployment: Annotated[Path, typer.Argument(metavar="DEPLOYMENT", help="A deployment file (*.toml).", show_default=False)],
    model: Annotated[str, typer.Option(help="What clients ask for.", show_default=False)],
    version: Annotated[str, typer.Option(help="A name that the model has no version of yet.", show_default=False)],
    weight: Annotated[float, typer.Option(min=0, help="Its share of callers; 0 answers who asks for it by name.")] = 0.0,
    shadow: Annotated[float, typer.Option(min=0, max=1, help="Answer nobody, and get copies of what this share of callers asks.")] = 0.0,
    force: Annotated[str, typer.Option(metavar="REASON", help="Although its verdict did not pass.", show_default=False)] = "",
) -> None:
    """Write a package into a deployment file, if its verdict passed; a deployment that runs follows."""
    needs_training("promote")
    from burnish.inspector.text import printable
    from burnish.serving.promotion import promote as write_down

    table = write_down(package, deployment, model, version, weight, shadow, force)
    share = f"shadows {table.shadow:.1%}" if table.shadow else f"weight {table.weight:g}"
    forced = f", forced: {table.forced}" if table.forced else ""
    typer.echo(printable(f"{deployment}: {model}:{version} is {table.model}, {share}{forced}"))
