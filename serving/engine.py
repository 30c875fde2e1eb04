"""One engine on one model, asked as rollouts asked it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from ..envs.tool_calls import parser_of_template
from ..trainer.models.manifest import own_manifest
from .config import ServingConfig
from .counting import CountedChatApp
from .forced_calls import PYTHONIC
from .rendering import RenderedChatApp
from .wire import PROBES, answer, path_of

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
    """Start an engine on a model folder, which it serves as `name`, and each of the adapters as `name:ADAPTER`."""
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
    return ServedEngine(ProbedApp(said, service.check_health), service)
