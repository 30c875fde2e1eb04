"""A plug-in that puts a scripted engine in the place of vLLM's, and lets engine, runner, learner, driver and disk suffer faults.

It is loaded in the driver, in the runner and in the learner. What it changes of burnish are single functions, which do as they did but for
the fault that the file of their place asks for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.integration.faults import PACE_S, SEEN, consumed, told

from burnish.rollout import worker
from burnish.rollout.engine.base import GenerateRequest, Generation
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.tokenizer import load_tokenizer
from burnish.rollout.weights import SyncProof


class SufferingEngine(ScriptedEngine):
    """Looks, and then says a digit. A killed one says what vLLM's says once its process is gone, and goes on saying it; a stopped one
    samples no further token."""

    async def generate(self, request: GenerateRequest) -> Generation:
        fault = told("engine")
        if consumed("engine", "killed"):
            self.lose("the engine's process ended")
        if consumed("engine", "stopped"):
            self.hang()
        if fault == "raises":
            raise RuntimeError("the engine was told to raise")
        await asyncio.sleep(PACE_S * (9 if fault == "slow" else 0))
        return await super().generate(request)


def suffering_engine(config: EngineConfig, model: Path, name: str) -> SufferingEngine:
    """In the place of `make_engine`."""
    tokenizer = load_tokenizer(model)

    def script(request: GenerateRequest) -> list[int]:
        looked = SEEN in str(tokenizer.decode(list(request.prompt_token_ids)))
        text = str(np.random.default_rng(request.seed).integers(10)) if looked else "look(at=1)"
        return [*tokenizer.encode(text, add_special_tokens=False), *request.stop_token_ids[:1]]

    return SufferingEngine(script, name=name, max_context=config.max_context, delay_s=PACE_S, timeout_s=config.request_timeout_s)


def suffering(owner: Any, name: str, fail: Callable[[Any], None]) -> None:
    """Have a method do something first."""
    real = getattr(owner, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        fail(self)
        return real(self, *args, **kwargs)

    setattr(owner, name, call)


def raises(place: str) -> Callable[[Any], None]:
    def fail(_: Any) -> None:
        if consumed(place, "raises"):
            raise RuntimeError(f"the {place} was told to raise")

    return fail


def full_disk(lines: JsonLines) -> None:
    if told("disk") == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(lines.path))


def module(name: str) -> Any:
    """A module of burnish that this process has loaded, None where it has not: nothing heavy is loaded for the faults' sake."""
    return sys.modules.get(f"burnish.{name}")


worker.make_engine = suffering_engine  # type: ignore[assignment, attr-defined]  # which takes paths as text, too
suffering(worker.RolloutWorker, "sample", raises("runner"))
suffering(JsonLines, "append", full_disk)
if module("trainer.learner.learner"):
    suffering(module("trainer.learner.learner").Learner, "forward_backward", raises("learner"))
if module("run.display"):
    suffering(module("run.display").StepBar, "tick", raises("driver"))
SyncProof.holds = property(lambda _: True)  # type: ignore[method-assign, assignment]  # its numbers are the script's; versions and checksums stay
