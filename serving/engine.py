"""One engine on one model, asked as rollouts asked it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..envs.tool_calls import parser_of_template
from ..trainer.models.manifest import own_manifest
from .config import ServingConfig
from .counting import CountedChatApp
from .forced_calls import PYTHONIC
from .rendering import RenderedChatApp
from .wire import COMPLETIONS, PROBES, answer, asked_once, path_of, post_scope

if TYPE_CHECKING:
    from ..rollout.engine.vllm_openai import Adapter, OpenAIApp


@dataclass(frozen=True)
class ServedEngine:
    """app: answers chat requests, `/health` and `/ready`."""

    app: ASGIApp
    service: OpenAIApp

    async def check_health(self) -> None:
        """Raises when the engine is gone, or hangs."""
        await self.service.check_health()

    def close(self) -> None:
        """End the engine and its process. Requests in flight are cut off."""
        self.service.close()


class ProbedApp:
    """ASGI middleware that says whether an engine lives. check: raises where it is gone, or hangs. It is ready when it lives: nobody can
    ask before its start is over."""

    def __init__(self, app: ASGIApp, check: Callable[[], Awaitable[None]]) -> None:
        self._app, self._check = app, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) not in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            await self._check()
        except Exception:  # whatever it is, Serve's own check raises it too, and says so
            await answer(send, 503, b"")
        else:
            await answer(send, 200, b"")


async def start_engine(
    model: Path, name: str, options: ServingConfig, adapters: Mapping[str, Adapter] = MappingProxyType({})
) -> ServedEngine:
    """Start an engine on a model folder, which it serves as `name`, and each of the adapters as `name:ADAPTER`, and have it answer once.

    Raises RuntimeError where it does not.
    """
    from ..rollout.engine.vllm_openai import ServedModel, start_openai_app
    from ..rollout.renderers import TemplateRenderer
    from ..rollout.tokenizer import load_tokenizer

    manifest = own_manifest(model)
    tokenizer = load_tokenizer(model)
    renderer = TemplateRenderer(tokenizer, manifest.template_args if manifest is not None else {})
    parser = parser_of_template(tokenizer.chat_template) or PYTHONIC
    service = await start_openai_app(
        ServedModel(model, name, {f"{name}:{adapter}": found for adapter, found in adapters.items()}),
        max_context=options.max_context,
        max_concurrent=options.max_concurrent,
        kv_cache_mb=options.kv_cache_mb,
        device=options.device,
        threads=options.threads,
        silent_s=options.request_timeout_s,
    )
    said = RenderedChatApp(CountedChatApp(service.asgi, service.taken), renderer, parser, writes_calls=not renderer.takes_calls)
    try:
        await warm_up(said, (name, *(f"{name}:{adapter}" for adapter in adapters)), options.ready_timeout_s)
    except BaseException:
        service.close()
        raise
    return ServedEngine(ProbedApp(said, service.check_health), service)


async def warm_up(app: ASGIApp, names: Sequence[str], seconds: float) -> None:
    """Have an engine answer two tokens under each name before callers come: its first answer takes longer, because parts of it are made
    then. Raises RuntimeError when it does not within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            for name in names:
                status = await _status_of_first(app, name)
                if status != 200:
                    raise RuntimeError(f"the engine's first answer as {name} has the status {status}")
    except TimeoutError:
        raise RuntimeError(f"the engine did not answer its first request within {seconds:.0f} s") from None


async def _status_of_first(app: ASGIApp, name: str) -> int:
    body = json.dumps({"model": name, "prompt": [0], "max_tokens": 2, "temperature": 0.0, "ignore_eos": True}).encode()
    status = 0

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(post_scope(COMPLETIONS, len(body)), asked_once(body), send)
    return status
