"""One engine on one model, asked as rollouts asked it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from ..envs.tool_calls import parser_of_template
from ..trainer.models.manifest import own_manifest
from .config import ServingConfig
from .counting import CountedChatApp
from .forced_calls import PYTHONIC
from .rendering import RenderedChatApp

if TYPE_CHECKING:
    from ..rollout.engine.vllm_openai import Adapter, OpenAIApp


@dataclass(frozen=True)
class ServedEngine:
    """app: answers chat requests, and `/health`."""

    app: ASGIApp
    service: OpenAIApp

    async def check_health(self) -> None:
        """Raises when the engine is gone, or hangs."""
        await self.service.check_health()

    def close(self) -> None:
        """End the engine and its process. Requests in flight are cut off."""
        self.service.close()


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
    return ServedEngine(
        RenderedChatApp(CountedChatApp(service.asgi, service.taken), renderer, parser, writes_calls=not renderer.takes_calls), service
    )
