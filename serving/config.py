"""Options of the chat service."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """How a checkpoint is served.

    host: the address to listen on; loopback unless changed. port: 0 takes a free one. name: the model name clients ask for, the
    folder's recorded name when None. max_context: longest prompt and answer together, in tokens; None takes what the model was made for,
    at most 2048. kv_cache_mb: None holds four whole contexts. threads: CPU threads of the engine. ready_timeout_s: how long a start may
    take. request_timeout_s: how long one answer may take.

    Example: `ServingConfig(port=8000, name="inspector")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    name: str | None = Field(default=None, min_length=1)
    device: Literal["cpu", "cuda"] = "cpu"
    max_context: int | None = Field(default=None, gt=0)
    max_concurrent: int = Field(default=16, gt=0)
    kv_cache_mb: int | None = Field(default=None, gt=0)
    threads: int = Field(default=1, gt=0)
    ready_timeout_s: float = Field(default=600.0, gt=0)
    request_timeout_s: float = Field(default=300.0, gt=0)
