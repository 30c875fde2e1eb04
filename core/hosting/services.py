"""Verifier, tool and environment services as programs: what `burnish serve-verifier`, `serve-tools` and `serve-env` run.

`python -m burnish.hosting.services verifier module:name` is the program that `burnish.hosting.process` starts as a child.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from google.protobuf.message import DecodeError

from burnish.envs.named import load_environment, try_environment
from burnish.envs.registry import ID_PATTERN, Registry, did_you_mean, load_plugin, look_here, said_of_import
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment, SessionLimits
from burnish.envs.remote.tools import ToolService
from burnish.envs.tool_sessions import SessionTools
from burnish.envs.tools import ToolSet
from burnish.inspector.text import printable
from burnish.rewards.plugin import REWARDS
from burnish.rewards.remote.of_reward import verifier_of_reward
from burnish.rewards.remote.service import VERIFIERS, Verifier, VerifierService
from burnish.rpc.batches import Limits
from burnish.rpc.security import ServerSecurity, is_loopback
from burnish.rpc.server import ServerOptions, Service, print_ready, ready_line, serve_until_signal
from burnish.rpc.urls import without_secrets
from burnish.v1 import verifier_pb2

log = logging.getLogger("burnish.hosting.services")

ServiceKind = Literal["verifier", "tools", "environment"]
ReadyCallback = Callable[[str, list[Service]], None]

SECURITY_OPTIONS = {
    "tls-cert": "PEM file of the server's certificate; turns TLS on.",
    "tls-key": "PEM file of the certificate's key.",
    "tls-client-ca": "PEM file of the CA whose certificates clients must show (mutual TLS).",
    "token-env": "Environment variable with the token that calls must carry.",
    "token-file": "File with the token that calls must carry.",
}
INSECURE_HELP = "Listen beyond loopback without TLS, which ends before this server; a token is needed all the same."
PR_SET_PDEATHSIG = 1
ENV_THREADS = 64
PROTOCOL: str = verifier_pb2.DESCRIPTOR.package
"""What services speak, "burnish.v1": within one version of the contract, servers and clients of different versions of burnish agree."""


def serve_verifier(
    target: str,
    options: ServerOptions | None = None,
    on_ready: ReadyCallback = print_ready,
    args: Mapping[str, Any] | None = None,
) -> None:
    """Serve verifiers until SIGTERM or Ctrl-C. `target` is "module:name", "path/to/file.py:name", or the id of a registered verifier or
    reward, the latter with its options in args; "module" or "path/to/file.py" serves all verifiers there.

    Prints the ready line (see `burnish.rpc.server.ready_line`). Raises ValueError when the target, the port, the
    certificates or the token cannot be had.
    """
    _serve(load_services("verifier", target, args), options or ServerOptions(), on_ready)


def serve_tools(target: str, options: ServerOptions | None = None, on_ready: ReadyCallback = print_ready) -> None:
    """Serve tools until SIGTERM or Ctrl-C. `target` is "module" or "path/to/file.py" (all its tools), or with ":name" a `ToolSet`, or a
    class whose methods are tools, for those that keep state (see `burnish.envs.tool_sessions`).

    Prints the ready line. Raises ValueError when the target, the port, the certificates or the token cannot be had.
    """
    _serve(load_services("tools", target), options or ServerOptions(), on_ready)


def serve_environment(
    target: str,
    kwargs: Mapping[str, Any] | None = None,
    options: ServerOptions | None = None,
    on_ready: ReadyCallback = print_ready,
    sessions: SessionLimits | None = None,
    threads: int = ENV_THREADS,
    allowed: Sequence[str] = (),
) -> None:
    """Serve one environment until SIGTERM or Ctrl-C. `target` is a registered id, or "module:namespace/Name-v0" or
    "path/to/file.py:namespace/Name-v0" for one that importing it registers; kwargs are what it is made with; allowed, which of
    them clients may set. threads: resets and steps running at a time; 0 runs them on the event loop.

    Prints the ready line. Raises ValueError when the target, a kwarg, the port, the certificates or the token cannot be had.
    """
    _serve([environment_service(target, kwargs, sessions, threads, allowed)], options or ServerOptions(), on_ready)


def load_services(kind: ServiceKind, target: str, kwargs: Mapping[str, Any] | None = None, allowed: Sequence[str] = ()) -> list[Service]:
    """What a server of this kind hosts; kwargs are those of an environment, or the options of a reward, allowed those of an environment.

    Raises ValueError when the target does not exist or is not of this kind.
    """
    match kind:
        case "verifier":
            return [VerifierService(load_verifiers(target, kwargs))]
        case "tools":
            return [ToolService(load_tools(target))]
        case "environment":
            return [environment_service(target, kwargs, allowed=allowed)]


def environment_service(
    target: str,
    kwargs: Mapping[str, Any] | None = None,
    sessions: SessionLimits | None = None,
    threads: int = ENV_THREADS,
    allowed: Sequence[str] = (),
) -> EnvironmentService:
    """See `serve_environment`. Raises ValueError when the target or a kwarg cannot be had."""
    id, given = load_environment(target), dict(kwargs or {})
    try_environment(id, given)
    return EnvironmentService([ServedEnvironment(id, given, tuple(allowed))], sessions, Limits(threads=threads or 1), inline=threads == 0)


def load_verifier(target: str, args: Mapping[str, Any] | None = None) -> Verifier:
    """args: options of a reward. Raises ValueError when the target does not exist or is no verifier, and for args of one that is."""
    if ID_PATTERN.match(target) and not _is_id_of(VERIFIERS, target) and _is_id_of(REWARDS, target):
        return verifier_of_reward(target, args)
    if args:
        raise ValueError(f"{target!r}: a verifier takes no arguments ({', '.join(args)}); the id of a reward does")
    if ID_PATTERN.match(target):
        return VERIFIERS.get(target, "my_file.py:NAME names one of your own")
    module, name = _split(target)
    if not name:
        raise ValueError(f"{target!r} names no verifier; give module:name or path.py:name, where name is decorated with @verifier")
    found = _attribute(_import(module), name, target)
    if not isinstance(found, Verifier):
        raise ValueError(f"{target!r} is not a verifier; decorate the function with @verifier (from burnish import verifier)")
    return found


def _is_id_of(registry: Registry[Any], id: str) -> bool:
    return any(row.id == id for row in registry.list())


def load_verifiers(target: str, args: Mapping[str, Any] | None = None) -> list[Verifier]:
    """The verifier that the target names, or all of a module's when it names none. Raises ValueError when there are none."""
    module, name = _split(target)
    if name or args or ID_PATTERN.match(target):
        return [load_verifier(target, args)]
    found = [value for key, value in vars(_import(module)).items() if isinstance(value, Verifier) and not key.startswith("_")]
    if not found:
        raise ValueError(f"{target!r} has no verifiers; decorate functions with @verifier (from burnish), or give {target}:name")
    return found


def load_tools(target: str) -> ToolSet | SessionTools:
    """Raises ValueError when the target does not exist or has no tools."""
    path, name = _split(target)
    module = _import(path)
    if not name:
        return ToolSet.from_module(module)
    found = _attribute(module, name, target)
    if isinstance(found, type):
        return SessionTools(found)
    if isinstance(found, SessionTools):
        return found
    if not isinstance(found, ToolSet):
        raise ValueError(f"{target!r} is a {type(found).__name__}, not a ToolSet; leave out ':{name}' to serve all tools of the module")
    return found


def _split(target: str) -> tuple[str, str]:
    module, _, name = target.partition(":")
    return module, name


def _import(module: str) -> Any:
    if module.endswith(".py"):
        return sys.modules[load_plugin(module)]
    look_here()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"module {module!r} cannot be imported from {os.getcwd()}: {said_of_import(error)}") from error


def _attribute(module: Any, name: str, target: str) -> Any:
    if not hasattr(module, name):
        elsewhere = {key for key, value in vars(module).items() if inspect.ismodule(value) or _imported(value, module)}
        names = [key for key in vars(module) if not key.startswith("_") and key not in elsewhere]
        raise ValueError(f"{target!r}: there is no {name!r}{did_you_mean(name, names)}")
    return getattr(module, name)


def _imported(value: object, module: Any) -> bool:
    """Whether a class or function of a module was written in another."""
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ != module.__name__


class _Formatter(logging.Formatter):
    """Clients' ids and texts stand in these lines: nothing in them begins a line, steers a terminal, or is a secret in a URL."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return without_secrets(printable(super().formatMessage(record)).replace("\n", "\\n"))

    def formatException(self, ei: Any) -> str:
        if isinstance(ei[1], DecodeError):  # a client sent what is no message: the line says so, and the traceback is of gRPC's inside
            return ""
        return without_secrets(printable(super().formatException(ei)))


def _serve(services: list[Service], options: ServerOptions, on_ready: ReadyCallback) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])

    def ready(address: str) -> None:
        if options.security.insecure and not is_loopback(options.host) and not options.security.cert:
            log.warning("listening on %s without TLS: whoever sits between it and where TLS ends reads calls and tokens", options.host)
        on_ready(address, services)

    clean = asyncio.run(serve_until_signal(services, options, ready))
    if not clean:
        log.warning("a sync function did not return; ending the process without it")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an ordinary exit would wait for that thread


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    """The program behind `python -m burnish.hosting.services`. One clear line on stderr and code 2 when it cannot serve."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.hosting.services", description="Serve a verifier, tools or an environment over gRPC."
    )
    parser.add_argument("kind", choices=("verifier", "tools", "environment"))
    parser.add_argument("target", help="module:name or path.py:name of a verifier; module or path.py of tools; id of an environment")
    parser.add_argument("--kwargs", type=json.loads, default={}, help="what an environment is made with, or a reward's options, as JSON")
    parser.add_argument("--allow-arg", action="append", default=[], help="an argument of an environment that clients may set")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    for name, text in SECURITY_OPTIONS.items():
        parser.add_argument(f"--{name}", default="", help=text)
    parser.add_argument("--insecure", action="store_true", help=INSECURE_HELP)
    parser.add_argument("--ready-fd", type=int, help="write the ready line to this file descriptor instead of stdout")
    parser.add_argument("--parent-pid", type=int, help="die when this process, the parent, dies")
    parser.add_argument("--check", action="store_true", help="load the target, print the protocol as a line of JSON, and end")
    options = parser.parse_args(arguments)
    if options.parent_pid is not None:
        _die_with_parent(options.parent_pid)

    def on_ready(address: str, services: list[Service]) -> None:
        if options.ready_fd is None:
            print_ready(address, services)
            return
        os.write(options.ready_fd, (ready_line(address, services) + "\n").encode())
        os.close(options.ready_fd)

    try:
        if options.check:
            load_services(options.kind, options.target, options.kwargs)
            print(json.dumps({"event": "loads", "protocol": PROTOCOL}))
            return 0
        security = ServerSecurity(
            options.tls_cert, options.tls_key, options.tls_client_ca, options.token_env, options.token_file, options.insecure
        )
        where = ServerOptions(options.host, options.port, security=security)
        match options.kind:
            case "verifier":
                serve_verifier(options.target, where, on_ready, options.kwargs)
            case "tools":
                serve_tools(options.target, where, on_ready)
            case _:
                serve_environment(options.target, options.kwargs, where, on_ready, allowed=options.allow_arg)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
