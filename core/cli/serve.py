"""The `burnish serve-…` commands: one service, in this process."""

from __future__ import annotations

from typing import Annotated

import typer

from burnish.cli.options import (
    AllowArgOption,
    ArgOption,
    HostOption,
    InsecureOption,
    MaxStreamsOption,
    PluginOption,
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
        help="A module or path.py, with :name one thing of it; a verifier's or a reward's id for serve-verifier.",
        show_default=False,
    ),
]
EnvironmentArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="An id of `burnish env list`, module:ns/Name-v0 or path.py:ns/Name-v0.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("serve-verifier", help="Serve a verifier or a reward over gRPC, or all verifiers of a module.")(_serve_verifier)
    app.command("serve-tools", help="Serve the tools of a module over gRPC, a ToolSet, or a class whose methods are tools.")(_serve_tools)
    app.command("serve-env", help="Serve an environment over gRPC.")(_serve_environment)


def _serve_verifier(
    target: TargetArgument,
    arg: ArgOption = None,
    plugin: PluginOption = None,
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
    from burnish.cli.arguments import parse_arguments
    from burnish.envs.registry import load_plugin
    from burnish.hosting.services import serve_verifier
    from burnish.rpc.server import ServerOptions

    for file in plugin or ():
        load_plugin(file)
    security = security_of(tls_cert, tls_key, tls_client_ca, token_env, token_file, insecure)
    where = ServerOptions(host, port, security=security, max_streams=max_streams)
    serve_verifier(target, where, args=parse_arguments(arg or ()))


def _serve_tools(
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
    from burnish.hosting.services import serve_tools
    from burnish.rpc.server import ServerOptions

    security = security_of(tls_cert, tls_key, tls_client_ca, token_env, token_file, insecure)
    serve_tools(target, ServerOptions(host, port, security=security, max_streams=max_streams))


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
