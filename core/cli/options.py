"""Options that several commands of `burnish` take: each is written once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from burnish.cli.answer import answer, stdout_for_json

if TYPE_CHECKING:
    from burnish.rpc.security import ServerSecurity


def json_option(help: str) -> Any:
    """A `--json` of its own help."""
    return typer.Option("--json", callback=stdout_for_json, help=help)


PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A Python file that registers environments, rewards and more.")
]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (*.toml).", show_default=False)]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one field of the recipe.")]
ArgOption = Annotated[list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="An argument, as in the recipe.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
TrustOption = Annotated[bool, typer.Option("--trust", help="The run is your own: run the code that it names, though nobody registered it.")]
PhaseOption = Annotated[str | None, typer.Option(help="base, or the name of a phase.")]
StepOption = Annotated[int | None, typer.Option(help="Step of the phase.")]
SplitOption = Annotated[Literal["train", "heldout"] | None, typer.Option(help="Of training, or held out.")]
ModeOption = Annotated[Literal["sampled", "greedy"] | None, typer.Option(help="How the policy answered.")]
JsonOption = Annotated[bool, json_option("Print JSON, for a program to read.")]
StallOption = Annotated[
    float | None,
    typer.Option("--stall-s", min=1, help="Seconds in which no call ends, until it stops. Default: 600.", show_default=False),
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine. Default: 1.", show_default=False)]
HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
MaxStreamsOption = Annotated[int, typer.Option(min=1, help="Streams open at a time, of all clients; more are refused.")]
TlsCertOption = Annotated[str, typer.Option(metavar="PEM", help="The server's certificate; turns TLS on.", show_default=False)]
TlsKeyOption = Annotated[str, typer.Option(metavar="PEM", help="The key of the certificate.", show_default=False)]
TlsClientCaOption = Annotated[
    str, typer.Option(metavar="PEM", help="The CA whose certificates clients must show (mutual TLS).", show_default=False)
]
TokenEnvOption = Annotated[
    str, typer.Option(metavar="NAME", help="Environment variable with the token that calls must carry.", show_default=False)
]
TokenFileOption = Annotated[str, typer.Option(metavar="FILE", help="File with the token that calls must carry.", show_default=False)]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without TLS, which ends before this server.")]
AllowArgOption = Annotated[
    list[str] | None, typer.Option("--allow-arg", metavar="NAME", help="An argument that clients may set. Default: none.")
]


def refuse_idle(given: Mapping[str, object], why: str) -> None:
    """Raise ValueError naming the first option that was given and would have no effect."""
    for name, value in given.items():
        if value not in (None, False, []):
            raise ValueError(f"--{name.replace('_', '-')} has no effect {why}")


def print_json(data: Any) -> None:
    """What `--json` prints: numbers that are not finite, for which JSON has no word, are null."""
    from burnish.inspector.text import finite

    answer(json.dumps(finite(data), allow_nan=False))


def security_of(cert: str, key: str, client_ca: str, token_env: str, token_file: str, insecure: bool) -> ServerSecurity:
    """How a server is guarded, from its options."""
    from burnish.rpc.security import ServerSecurity

    return ServerSecurity(cert, key, client_ca, token_env, token_file, insecure)
