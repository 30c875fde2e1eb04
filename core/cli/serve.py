"""The `burnish serve-…` commands: one service, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import typer

from burnish.cli.options import (
    AllowArgOption,
    ArgOption,
    HostOption,
    InsecureOption,
    MaxStreamsOption,
    PortOption,
    TlsCertOption,
    TlsClientCaOption,
    TlsKeyOption,
    TokenEnvOption,
    TokenFileOption,
    security_of,
)

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A module or path.py, with :name one thing of it; a verifier's id for serve-verifier.",
        show_default=False,
    ),
]
EnvironmentArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="An id of `burnish env list`, module:ns/Name-v0 or path.py:ns/Name-v0.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("serve-verifier", help="Serve a verifier over gRPC, or all of a module.")(_command("verifier"))
    app.command("serve-tools", help="Serve the tools of a module over gRPC, a ToolSet, or a class whose methods are tools.")(
        _command("tools")
    )
    app.command("serve-env", help="Serve an environment over gRPC.")(_serve_environment)


def _command(kind: Literal["verifier", "tools"]) -> Callable[..., None]:
    def command(
        target: TargetArgument,
        host: HostOption = "127.0.0.1",
        port: PortOption = 0,
        tls_cert: TlsCertOption = "",
        tls_key: TlsKeyOption = "",
        tls_client_ca: TlsClientCaOption = "",
        token_env: TokenEnvOption = "",
        token_file: TokenFileOption = "",
        insecure: InsecureOption = False,
        max_streams: MaxStreamsOption = 1024,
    ) -> None:
        from burnish.hosting.services import serve_tools, serve_verifier
        from burnish.rpc.server import ServerOptions

        security = security_of(tls_cert, tls_key, tls_client_ca, token_env, token_file, insecure)
        serve = serve_verifier if kind == "verifier" else serve_tools
        serve(target, ServerOptions(host, port, security=security, max_streams=max_streams))

    return command


def _serve_environment(
    target: EnvironmentArgument,
    arg: ArgOption = None,
    allow_arg: AllowArgOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 0,
    idle_s: Annotated[float, typer.Option("--idle-s", help="Seconds without a call after which an episode is closed.")] = 600.0,
    max_sessions: Annotated[int, typer.Option("--max-sessions", help="Episodes open at a time.")] = 4096,
    threads: Annotated[int, typer.Option(min=0, help="Steps at a time; 0 takes no threads, for steps of microseconds.")] = 64,
    tls_cert: TlsCertOption = "",
    tls_key: TlsKeyOption = "",
    tls_client_ca: TlsClientCaOption = "",
    token_env: TokenEnvOption = "",
    token_file: TokenFileOption = "",
    insecure: InsecureOption = False,
    max_streams: MaxStreamsOption = 1024,
) -> None:
    from burnish.cli.arguments import parse_arguments
    from burnish.envs.remote.service import SessionLimits
    from burnish.hosting.services import serve_environment
    from burnish.rpc.server import ServerOptions

    security = security_of(tls_cert, tls_key, tls_client_ca, token_env, token_file, insecure)
    where, limits = ServerOptions(host, port, security=security, max_streams=max_streams), SessionLimits(idle_s, max_sessions)
    serve_environment(target, parse_arguments(arg or ()), where, sessions=limits, threads=threads, allowed=allow_arg or ())
