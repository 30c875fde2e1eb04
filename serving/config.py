"""Options of the chat service."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from ..envs.pydantic_words import first_error
from ..guardrails.asks import MOST_ASKS
from ..rpc.security import is_loopback

LEAST_MEGABYTES: Final = 16
"""Of a feedback folder: less would not hold a few of the longest conversations."""


class FeedbackConfig(BaseModel):
    """`[service.feedback]`: takes feedback on answers at `POST /v1/feedback`.

    folder: where it is kept. conversations: whether what was asked and answered is kept with it; a request with `store` false never is.
    wait_hours: how long an answer waits for feedback; one that gets none is gone then. days: how long feedback is kept. megabytes: the most
    that the folder may take, half of it what waits; the oldest goes first.

    Example: `FeedbackConfig(folder="feedback", conversations=True, days=90)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    folder: str = Field(min_length=1)
    conversations: StrictBool = False
    wait_hours: float = Field(default=24.0, gt=0)
    days: float = Field(default=30.0, gt=0)
    megabytes: int = Field(default=256, ge=LEAST_MEGABYTES)


class ServingConfig(BaseModel):
    """How a checkpoint is served.

    host: the address to listen on; loopback unless changed, and any other one needs API keys. api_key_env, api_key_file: the environment
    variable with the key, or the file with one key a line, that requests must carry as `Authorization: Bearer KEY`. tls_cert, tls_key: PEM
    files of the server's certificate; they turn https on. insecure: beyond loopback without TLS, which then ends in front of this server.
    port: 0 takes a free one. name: the model name clients ask for, the folder's recorded name when None. device: "auto" is the one that the
    installed vLLM was built for. max_context: longest prompt and answer together, in tokens; None takes what the model was made for, at
    most 2048. kv_cache_mb: None holds four whole contexts. threads: CPU threads of the engine. ready_timeout_s: how long a start may take.
    request_timeout_s: how long one answer may take; an engine that samples nothing for as long, for any request, is started anew.
    keys_file: keys with names, scopes and limits (`serving.keys`), in the place of the plain ones. policy: a guardrail policy that requests
    and answers are held to; plugins: Python files that register its detectors. max_judge_calls: of the policy's detectors that ask
    something elsewhere, for one request with all its answers; beyond them a text counts as found. audit_file: where a line is written for
    each request, without what was said unless audit_prompts. feedback: what is kept for feedback on answers, nothing unless given.

    Example: `ServingConfig(port=8000, name="inspector")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key_env: str = ""
    api_key_file: str = ""
    keys_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    insecure: StrictBool = False
    name: str | None = Field(default=None, min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_context: int | None = Field(default=None, gt=0)
    max_concurrent: int = Field(default=16, gt=0)
    kv_cache_mb: int | None = Field(default=None, gt=0)
    threads: int = Field(default=1, gt=0)
    ready_timeout_s: float = Field(default=600.0, gt=0)
    request_timeout_s: float = Field(default=300.0, gt=0)
    policy: str = ""
    plugins: tuple[str, ...] = ()
    max_judge_calls: int = Field(default=MOST_ASKS, ge=1)
    audit_file: str = ""
    audit_prompts: StrictBool = False
    feedback: FeedbackConfig | None = None

    @model_validator(mode="after")
    def _guarded(self) -> ServingConfig:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError(f"https needs both a certificate and its key; the {'key' if self.tls_cert else 'certificate'} is missing")
        if sum(map(bool, (self.api_key_env, self.api_key_file, self.keys_file))) > 1:
            raise ValueError("give the API keys in one way: by environment variable, by a file that lists them, or by a keys file")
        if self.plugins and not self.policy:
            raise ValueError("plugins have no effect without policy: what they bring are its detectors")
        if self.max_judge_calls != MOST_ASKS and not self.policy:
            raise ValueError("max_judge_calls has no effect without policy: it bounds the calls of its detectors")
        if self.audit_prompts and not self.audit_file:
            raise ValueError("audit_prompts has no effect without audit_file")
        if is_loopback(self.host):
            return self
        if not (self.api_key_env or self.api_key_file or self.keys_file):
            raise ValueError(
                f"host {self.host!r} is not loopback: whoever reaches the port could use the model; give --keys, --api-key-file or "
                "--api-key-env (in a deployment keys_file, api_key_file or api_key_env), or listen on 127.0.0.1"
            )
        if not self.tls_cert and not self.insecure:
            raise ValueError(
                f"host {self.host!r} is not loopback: without TLS the API key would travel in the clear; give --tls-cert and --tls-key, or "
                "--insecure where TLS ends in front of this server (in a deployment tls_cert and tls_key, or insecure = true)"
            )
        return self


def serving_options(config: ServingConfig, **changes: Any) -> ServingConfig:
    """The config with changes, checked again. Raises ValueError, one line, for what contradicts itself or is not guarded."""
    try:
        return ServingConfig.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        raise ValueError(first_error(error, ServingConfig)) from None


def small_text(file: Path, name: str, limit: int) -> str:
    """The text of a file of settings. name: what errors call it. Raises ValueError, one line, when it is larger than `limit` bytes, is not
    text, or cannot be read."""
    try:
        if file.stat().st_size > limit:
            raise ValueError(f"{name}: it is larger than {limit} bytes")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}: it is not text") from None
