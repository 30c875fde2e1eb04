"""Who may talk to whom: TLS, mutual TLS and bearer tokens, for clients and servers.

A token is named, never written out: the environment variable or the file that holds it. It is read when a connection is made, so a new
token in the file counts from the next connection on.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc  # at run time only where a connection is made: configs name certificates too

TURN_TLS_ON = (
    'give tls = { ca = "…" }, or tls = {} for the system\'s authorities, in a recipe, --tls-ca to a command, ?ca=… or ?tls=1 in an address'
)
"""How TLS is asked for, wherever a client's security is written down."""


@dataclass(frozen=True, slots=True)
class ClientSecurity:
    """How a client proves who it is, and makes sure of the server.

    ca: PEM file of the authority that signed the server's certificate; giving it turns TLS on. tls: TLS with the system's authorities.
    cert, key: PEM files of this client's own certificate (mutual TLS). server_name: the name in the server's certificate, when it is
    not the host of the address. token_env, token_file: where the bearer token is. All paths and names, no secrets.

    Example: `ClientSecurity(ca="certs/ca.pem", token_env="VERIFIER_TOKEN")`.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    token_env: str = ""
    token_file: str = ""
    tls: bool = False

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError(f"a client certificate needs both cert and key; {'key' if self.cert else 'cert'} is missing")
        if self.token_env and self.token_file:
            raise ValueError("give token_env or token_file, not both")
        if (self.cert or self.server_name) and not self.secure:
            raise ValueError(f"{'cert' if self.cert else 'server_name'} has no effect without TLS; {TURN_TLS_ON}")

    @property
    def secure(self) -> bool:
        """Whether connections use TLS."""
        return bool(self.ca) or self.tls

    def token(self) -> str:
        """The bearer token, empty when none is configured. Raises ValueError when it cannot be read."""
        return read_token(self.token_env, self.token_file)

    def credentials(self) -> grpc.ChannelCredentials:
        """What a secure channel needs. Raises ValueError naming a file that cannot be read."""
        import grpc

        return grpc.ssl_channel_credentials(
            read_pem(self.ca, "the CA") if self.ca else None,
            read_pem(self.key, "the client's key") if self.key else None,
            read_pem(self.cert, "the client's certificate") if self.cert else None,
        )

    def context(self) -> ssl.SSLContext:
        """The same for a plain TLS socket, which says more precisely than gRPC why a handshake fails."""
        context = ssl.create_default_context(cafile=self.ca or None)
        context.set_alpn_protocols(["h2"])
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context

    def absolute(self) -> ClientSecurity:
        """The same with absolute paths, for processes that were started elsewhere."""
        paths = {name: _absolute(getattr(self, name)) for name in ("ca", "cert", "key", "token_file")}
        return ClientSecurity(**{field.name: getattr(self, field.name) for field in fields(self)} | paths)


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """Whom a server lets in. What it needs:

    | listens on | needs |
    |---|---|
    | loopback (127.0.0.1, ::1, localhost) | nothing; certificate and token are used when given |
    | any other address | cert and key, and a token or client_ca: the way is encrypted, and clients prove who they are |
    | any other address, insecure=True | a token: TLS ends before this server, in a proxy or a mesh |

    cert, key: PEM files of the server's certificate; they turn TLS on. client_ca: PEM file of the authority whose certificates clients
    must show (mutual TLS). token_env, token_file: where the bearer token is that every call but a health check must carry.

    Example: `ServerSecurity(cert="server.pem", key="server.key", token_file="token")`.
    """

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    token_env: str = ""
    token_file: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError(f"TLS needs both a certificate and its key; the {'key' if self.cert else 'certificate'} is missing")
        if self.client_ca and not self.cert:
            raise ValueError("client_ca has no effect without TLS; give the server a certificate and its key too")
        if self.token_env and self.token_file:
            raise ValueError("give the token by environment variable or by file, not both")

    def check_host(self, host: str) -> None:
        """Raise ValueError, one line, when a server may not listen on `host` like this."""
        if is_loopback(host):
            return
        missing, why = [], []
        if not self.token_env and not self.token_file and not self.client_ca:
            missing.append("a token (--token-file, --token-env) or the CA of its clients (--tls-client-ca)")
            why.append("whoever reaches the port may call")
        if not self.cert and not self.insecure:
            missing.append("a certificate and its key (--tls-cert, --tls-key), or --insecure where TLS ends before this server")
            why.append("calls can be read on the way, and the token would travel in the clear")
        if missing:
            raise ValueError(f"host {host!r} is not loopback: {'; '.join(why)}. Give {', and '.join(missing)}, or listen on 127.0.0.1")

    def token(self) -> str:
        """The bearer token, empty when none is configured. Raises ValueError when it cannot be read."""
        return read_token(self.token_env, self.token_file)

    def credentials(self) -> grpc.ServerCredentials | None:
        """What a secure port needs, None without TLS. Raises ValueError naming a file that cannot be read."""
        import grpc

        if not self.cert:
            return None
        pair = (read_pem(self.key, "the server's key"), read_pem(self.cert, "the server's certificate"))
        client_ca = read_pem(self.client_ca, "the clients' CA") if self.client_ca else None
        return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


NOT_REPEATED = "a value that is not repeated, as it may be a secret"
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


def shown_variable(name: str) -> str:
    """The name of an environment variable as errors repeat it; what is not written as most are may be the secret itself."""
    return name if _VARIABLE.fullmatch(name) else f"({NOT_REPEATED})"


def read_token(env: str, file: str) -> str:
    """The token in the environment variable or the file, empty when neither is named. Raises ValueError when it is not there."""
    if not env and not file:
        return ""
    if env:
        where, token = f"environment variable {shown_variable(env)}", os.environ.get(env, "").strip()
        if not token:
            raise ValueError(f"token: {where} is not set in this process")
    else:
        where = f"file {file}"
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token: {where} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from error
        if not token:
            raise ValueError(f"token: {where} is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"token: {where} must hold one line of printable ASCII without spaces")
    return token


def read_pem(file: str, what: str) -> bytes:
    """The content of a PEM file. Raises ValueError naming it when it cannot be read or holds no PEM."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{what}: {file} cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in content:
        raise ValueError(f"{what}: {file} is no PEM file")
    return content


def _absolute(path: str) -> str:
    return os.path.realpath(path) if path else ""
