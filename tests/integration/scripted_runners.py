"""RLlib env runners over a scripted engine instead of vLLM: what an answer says, how long it is, and whether new weights come in the middle
of it, follow from the request's seed, however busy the machine is."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.rllib.env.env_runner import EnvRunner

from burnish.rollout.engine.base import GenerateRequest, Generation
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.env_runner import LLMEnvRunner
from burnish.rollout.observe import RolloutMetrics
from burnish.rollout.transport.adapters import Base
from burnish.rollout.transport.shipment import Receiver
from burnish.rollout.weights import ParityBound
from burnish.rollout.worker import RolloutWorker
from burnish.trainer.rllib import RFTConfig

MAX_CONTEXT = 128


def answer(request: GenerateRequest) -> Reply:
    """From 2 tokens to as many as may be, most answers short: a tail as heavy as 1 / length."""
    random = np.random.default_rng(request.seed)
    count = min(int(2 / (1 - random.random())), request.max_tokens)
    return Reply([int(token) for token in random.integers(20, 290, count)], [float(x) for x in np.log(random.uniform(0.002, 0.006, count))])


class SlowNowAndThen(ScriptedEngine):
    """Every 16th answer or so begins before new weights and ends after them, if any come within `PATIENCE_S`."""

    PATIENCE_S = 60.0

    async def generate(self, request: GenerateRequest) -> Generation:
        if request.seed is None or request.seed % 16:
            return await super().generate(request)
        began = self.weight_version
        first = await super().generate(replace(request, max_tokens=1))
        for _ in range(int(self.PATIENCE_S / 0.05)):
            if self.weight_version > began:
                break
            await asyncio.sleep(0.05)
        rest = await super().generate(request)
        versions = np.concatenate([first.policy_version, rest.policy_version[1:]])
        return replace(rest, policy_version=versions)


class ScriptedRunner(LLMEnvRunner):
    """`LLMEnvRunner` with a scripted engine."""

    ENGINE: type[ScriptedEngine] = ScriptedEngine

    def __init__(self, *, config: Any, worker_index: int = 0, **kwargs: Any) -> None:
        EnvRunner.__init__(self, config=config, **kwargs)
        self.worker_index = worker_index
        name = f"rollout-{worker_index}"
        self.observer = RolloutMetrics(name)
        engine = self.ENGINE(answer, name=name, max_context=MAX_CONTEXT)
        self.worker = RolloutWorker(config.worker_setup, name, self.observer.episode, engine)
        setup = config.worker_setup
        self.receiver = Receiver(ray.get_runtime_context().get_node_id(), Base(setup.model, setup.engine.resolved_dtype))


class WaitingRunner(ScriptedRunner):
    """Some of its answers wait for new weights, which do not come where a step waits for every answer."""

    ENGINE = SlowNowAndThen


class ScriptedConfig(RFTConfig):
    """`RFTConfig` over such runners, whose log-probabilities are nobody's: no bound holds for their distance from the learner's."""

    RUNNER: type[ScriptedRunner] = ScriptedRunner

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class)
        self.env_runners(env_runner_cls=self.RUNNER)

    @property
    def parity(self) -> ParityBound:
        return ParityBound(math.inf, math.inf)


class WaitingConfig(ScriptedConfig):
    """`ScriptedConfig` over runners some of whose answers wait for new weights."""

    RUNNER = WaitingRunner
