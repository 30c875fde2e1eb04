"""The `burnish deploy-…` commands, `burnish undeploy`, and `burnish deploy` for models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.needs import needs_engine, needs_training
from burnish.cli.options import (
    AllowArgOption,
    ArgOption,
    InsecureOption,
    TlsCertOption,
    TlsClientCaOption,
    TlsKeyOption,
    TokenEnvOption,
    TokenFileOption,
    security_of,
)

if TYPE_CHECKING:
    from burnish.hosting.services import ServiceKind

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="What to serve, as for `burnish serve-…`.", show_default=False)]
ReplicasOption = Annotated[str, typer.Option(metavar="N|LOW..HIGH", help="How many replicas; a range follows the load.")]
NameOption = Annotated[str, typer.Option(help="Clients use the address ray:NAME. Default: taken from the target.", show_default=False)]
InFlightOption = Annotated[int, typer.Option(min=1, help="Items in flight that one replica is meant to have.")]
CalmOption = Annotated[float, typer.Option(min=1, help="Seconds of lower load before a replica goes.")]
CpusOption = Annotated[float, typer.Option(min=0, help="CPUs of the cluster that each replica takes.")]
HostOption = Annotated[str, typer.Option(help="What replicas listen on. Default: loopback, or each node's address.", show_default=False)]
RayOption = Annotated[str, typer.Option(help="A Ray cluster, auto to find one, local to start one on this machine.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    kinds: dict[ServiceKind, tuple[str, str]] = {
        "verifier": ("deploy-verifier", "a verifier"),
        "tools": ("deploy-tools", "tools"),
        "environment": ("deploy-env", "an environment"),
    }
    for kind, (name, what) in kinds.items():
        app.command(
            name, help=f"Serve {what} from many Ray actors, as many as the load asks for. Files that options name are there on every node."
        )(_command(kind, name))
    app.command("undeploy")(undeploy)
    app.command("deploy")(deploy_models)


def _command(kind: ServiceKind, command_name: str) -> Callable[..., None]:
    def command(
        target: TargetArgument,
        replicas: ReplicasOption = "1",
        name: NameOption = "",
        in_flight: InFlightOption = 32,
        calm_s: CalmOption = 30.0,
        cpus: CpusOption = 1.0,
        host: HostOption = "",
        ray_address: RayOption = "auto",
        tls_cert: TlsCertOption = "",
        tls_key: TlsKeyOption = "",
        tls_client_ca: TlsClientCaOption = "",
        token_env: TokenEnvOption = "",
        token_file: TokenFileOption = "",
        insecure: InsecureOption = False,
        arg: ArgOption = None,
        allow_arg: AllowArgOption = None,
    ) -> None:
        needs_training(command_name)
        from burnish.cli.arguments import parse_arguments
        from burnish.hosting.ray_actors import DeployOptions, deploy
        from burnish.hosting.scaling import Scale

        if (arg or allow_arg) and kind != "environment":
            raise ValueError(f"{'--arg' if arg else '--allow-arg'} has no effect on {kind}: only environments are made with arguments")
        security = security_of(tls_cert, tls_key, tls_client_ca, token_env, token_file, insecure)
        scale = Scale.parse(replicas, in_flight, calm_s)
        kwargs, allowed = parse_arguments(arg or ()), tuple(allow_arg or ())
        named = name or default_name(target)
        deploy(DeployOptions(kind, target, named, scale, host, cpus, ray_address, security, kwargs, allowed), typer.echo)

    return command


def default_name(target: str) -> str:
    """Example: `"my_team/checks.py:verdict" -> "verdict"`, `"a/b-v1" -> "b"`, `"my_team.tools" -> "tools"`."""
    last = re.split(r"[:/.]", target.removesuffix(".py"))[-1]
    return re.sub(r"-v\d+$", "", last)


def undeploy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of `burnish deploy-…`.", show_default=False)],
    ray_address: RayOption = "auto",
) -> None:
    """End a deployment, its replicas finishing what they have."""
    needs_training("undeploy")
    from burnish.hosting.ray_actors import undeploy as end

    end(name, ray_address)
    typer.echo(f"{name} has ended")


def deploy_models(
    deployment: Annotated[
        Path, typer.Argument(metavar="DEPLOYMENT", help="A deployment file (*.toml): models, versions, weights.", show_default=False)
    ],
) -> None:
    """Serve versions of models behind one gateway, and follow the file while it is edited, until Ctrl-C."""
    needs_engine("deploy")
    from burnish.inspector.text import printable
    from burnish.serving.fleet import start_deployment

    def say(line: str) -> None:
        typer.echo(printable(line))

    with start_deployment(deployment, say) as running:
        say(f"{deployment} at {running.url}/v1 (Ctrl-C stops it)")
        running.wait()
