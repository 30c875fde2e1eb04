"""What a recipe says about services; `rpc.address` has how the rest of it refers to them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from burnish.rpc.address import Endpoint
from burnish.rpc.security import ClientSecurity

_MODULE = r"([^\s:]+|\S[^:\n]*\.py)"
"""A module's name, or the path of a `.py` file, which may hold spaces."""

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TlsConfig(BaseModel):
    """How a client makes sure of the service at an address, and proves who it is: paths of PEM files. The empty table is TLS too.

    ca: the authority that signed the service's certificate; without it the system's authorities count. cert: this client's own
    certificate (mutual TLS). key: of that certificate. server_name: the name in the service's certificate, when it is not the host of the
    address.
    """

    model_config = STRICT

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""


class ServiceConfig(BaseModel):
    """The `[services.NAME]` table: a service that the run uses, referred to as `service:NAME`.

    One of four keys says what it is. burnish starts the first three as processes of their own and stops them with the run; a module may be
    the path of a `.py` file. tools: a module of `@tool` functions, or `module:name` of a `ToolSet` or a class with `@tool` methods.
    verifier: a `module:name` made with `@verifier`. environment: an id, or a `module:namespace/Name-v0`. address: where a service runs
    already: `host:port`, replicas as `host:port,host:port`, or `ray:NAME` for what `burnish deploy-verifier` runs.

    kwargs: what the environment is made with. token_env: the environment variable that holds the token for an address. token_file: the
    file that holds it. start_timeout_s: seconds until a service that burnish starts must listen. python: the interpreter that runs it, a
    path such as `.venv-judge/bin/python`, when the service needs other packages than the run has; burnish must be installed there, its
    base is enough.

    Example: `[services.verdicts]` with `verifier = "my_team.checks:verdict"`.
    """

    model_config = STRICT

    tools: str | None = Field(default=None, pattern=rf"^{_MODULE}(:[A-Za-z_]\w*)?$", description="a module, or the path of a .py file")
    verifier: str | None = Field(
        default=None,
        pattern=rf"^{_MODULE}:[A-Za-z_]\w*$",
        description="module:name or path.py:name, where name is the function with @verifier",
    )
    environment: str | None = Field(
        default=None,
        pattern=rf"^({_MODULE}:)?[^\s:/]+/[^\s:/]+-v\d+$",
        description="namespace/Name-v0, module:namespace/Name-v0 or path.py:namespace/Name-v0",
    )
    kwargs: dict[str, Any] = {}
    python: str | None = Field(default=None, min_length=1, description="the path of an interpreter")
    address: str | None = Field(default=None, pattern=r"^[^\s?]+$", description="host:port, host:port,host:port or ray:NAME")
    tls: TlsConfig | None = None
    token_env: str = ""
    token_file: str = ""
    start_timeout_s: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _one_kind(self) -> ServiceConfig:
        given = [key for key in ("tools", "verifier", "environment", "address") if getattr(self, key) is not None]
        if len(given) != 1:
            kinds = 'tools = "module", verifier = "module:name", environment = "namespace/Name-v0" and address = "host:port"'
            raise ValueError(f"needs exactly one of {kinds}, but has {' and '.join(given) or 'none'}")
        if self.kwargs and self.environment is None:
            raise ValueError("kwargs has no effect without environment; remove it")
        idle = [key for key in ("start_timeout_s", "python") if key in self.model_fields_set]
        if self.address is not None and idle:
            raise ValueError(f"{idle[0]} has no effect with address: that service runs already")
        guarded = [key for key in ("tls", "token_env", "token_file") if key in self.model_fields_set]
        if self.address is None and guarded:
            raise ValueError(f"{guarded[0]} has no effect without address: a service that burnish starts listens on this machine only")
        if self.address is not None:
            Endpoint.parse(self.full_address)
        return self

    @property
    def kind(self) -> Literal["tools", "verifier", "environment"] | None:
        """What burnish starts; None with an address."""
        if self.tools is not None:
            return "tools"
        return "verifier" if self.verifier is not None else "environment" if self.environment is not None else None

    @property
    def target(self) -> str:
        """What is served: a module, a function in one, or an environment; empty with an address."""
        return self.tools or self.verifier or self.environment or ""

    @property
    def full_address(self) -> str:
        """The address with how to talk to it: what clients take. Paths stay as they are, since a node without the run's folder has what
        was sent of it elsewhere, and every process of the run looks where its folder is (`envs.named.look_in`)."""
        assert self.address is not None
        files = self.tls.model_dump() if self.tls is not None else {}
        security = ClientSecurity(**files, tls=self.tls is not None, token_env=self.token_env, token_file=self.token_file)
        return str(dataclasses.replace(Endpoint.parse(self.address), security=security))
