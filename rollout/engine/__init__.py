"""Generation engines: one interface (`base.Engine`) over vLLM in this process, vLLM in processes of its own, and a scripted fake."""

from __future__ import annotations

from pathlib import Path

from .base import Engine
from .config import EngineConfig

__all__ = ["Engine", "EngineConfig", "make_engine"]


def make_engine(config: EngineConfig, model_path: str | Path, name: str) -> Engine:
    """Start the engine that `config` asks for over a Hugging Face folder, and wait until it answers.

    `name` is who failures and proofs accuse. Raises ValueError for a folder that is no model, EpisodeFailure when it does not start.
    """
    if config.resolved_backend == "vllm-async":
        from .vllm_async import AsyncEngine

        return AsyncEngine(config, Path(model_path), name)
    from .vllm_inprocess import InProcessEngine

    return InProcessEngine(config, Path(model_path), name)
