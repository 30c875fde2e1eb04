"""A run folder with episodes in its store: the real environment, rewards and rollout, over an engine that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.envs.types import EpisodeGroup, Message, Task
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.rewards.calling.threads import Daemons
from burnish.rollout.collect import collect
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.renderers import Renderer, TemplateRenderer
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rollout.tokenizer import load_tokenizer
from burnish.rollout.worker import episode_parts
from burnish.run.folder import create_run
from burnish.trainer.models.importing import ModelSize, new_model

TEXTS = [f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0 verdict {('pass', 'rework', 'scrap')[i % 3]}" for i in range(50)]
SIZE = ModelSize(hidden=64, layers=1, heads=1, intermediate=64, vocab_size=300, max_position=8192)
INSPECTS = [f'measure({part}, "shaft")' for part in range(10)] + ["verdict: pass; reason: within", "verdict: scrap; reason: oversize"]
"""What a policy may say to `burnish/QualityInspection-v0`; of the measurements, one fits the part."""


def tiny_model(folder: Path) -> Path:
    """A model whose tokenizer can write any text."""
    new_model(TEXTS, folder, SIZE)
    return folder


def recipe(model: Path, environment: str, **more: Any) -> ResolvedRun:
    given = {
        "name": "stored",
        "model": str(model),
        "environment": environment,
        "rollout": {"max_tokens_per_turn": 64, "max_turns": more.pop("max_turns", 1), "retries": 0},
        "engine": {"max_context": 8192},
        "rft": {"group_size": 2, "lr": 1e-5},
        **more,
    }
    return resolve(config_from_data({**given, "multi_turn_rollouts": given["rollout"]["max_turns"] > 1}))


def played(run: ResolvedRun, tasks: Sequence[Task], answers: Sequence[str], group_size: int = 2) -> list[EpisodeGroup]:
    """Groups of attempts, in the order of the tasks; each turn says one of the answers, chosen by the request's seed."""

    def engine(renderer: Renderer) -> ScriptedEngine:
        def said(request: GenerateRequest) -> list[int]:
            chosen = answers[int(np.random.default_rng(request.seed).integers(len(answers)))]
            return [*renderer.encode(chosen)[: request.max_tokens - 1], request.stop_token_ids[0]]

        return ScriptedEngine(said, max_context=run.engine.max_context)

    parts = episode_parts(run.worker_setup(Path(run.model), {}, seed=3), engine, Daemons("test"))

    async def all_of_them() -> list[EpisodeGroup]:
        finished = {group.task.id: group async for group in collect(parts, tasks, group_size, 1.0)}  # the first to finish comes first
        return [finished[task.id] for task in tasks]

    return asyncio.run(all_of_them())


def speaking(says: str) -> Callable[[EngineConfig, Path, str], ScriptedEngine]:
    """What stands in for `make_engine`: an engine that always says this."""

    def made(config: EngineConfig, model: Path, name: str) -> ScriptedEngine:
        renderer = TemplateRenderer(load_tokenizer(model))
        return ScriptedEngine(lambda asked: [*renderer.encode(says), asked.stop_token_ids[0]], name=name, max_context=config.max_context)

    return made


def stored(run: ResolvedRun, groups: Sequence[EpisodeGroup], folder: Path, step: int = 1) -> Path:
    """The folder of a run that holds these groups as one step."""
    made = create_run(run, run_dir=folder)
    with EpisodeStore(made.episodes, made.path.name) as store:
        store.put(Moment("rft", step, "train", "sampled"), [episode for group in groups for episode in group.episodes])
    return made.path


def seeded(count: int) -> list[Task]:
    return [Task(f"train-{i}", 1000 + i) for i in range(count)]


def asked(count: int) -> list[Task]:
    """Tasks as a file gives them."""
    return [Task(f"train-{i}:row-{i}", i, (Message("user", f"{i} + 1?"),), {"reference_answer": str(i + 1)}) for i in range(count)]
