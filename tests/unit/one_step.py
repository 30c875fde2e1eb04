"""One policy step over the scripted engine of the recorded steps."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
from tests.unit.test_recorded_steps import REWARD, SIZE, TEXTS, OneWorker, even_digits, scripted

from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import REWARDS, reward
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.weights import ParityBound
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.loop import LoopSettings, PolicyLoop, Step
from burnish.trainer.models.importing import new_model
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.rft import RFTPhaseConfig


def make_policy(folder: Path) -> Path:
    new_model(TEXTS, folder, SIZE)
    return folder


def played(policy: Path, phase: RFTPhaseConfig) -> tuple[PolicyLoop, Step]:
    """The loop after its first step, and what that did."""
    if REWARDS.loaded(REWARD) is None:
        reward(REWARD)(even_digits)
    limits = RolloutConfig(max_tokens_per_turn=12, concurrency=16)
    setup = WorkerSetup(
        policy, "burnish/Arithmetic-v0", rewards=(RewardConfig(use=REWARD),), rollout=limits, engine=EngineConfig(max_context=128), seed=5
    )
    worker = RolloutWorker(setup, "rollout-1", engine=ScriptedEngine(scripted, max_context=128))
    try:
        config = LearnerConfig(threads=1, microbatch_tokens=256, logit_rows=64)
        learner = Learner(policy, config.model_copy(update={"optimizer": phase_optimizer(config.optimizer, phase)}), seed=3)
        learner.begin_phase(phase_optimizer(config.optimizer, phase), phase.critic)
        settings = LoopSettings(phase, limits, "even-digits", ParityBound(math.inf, math.inf))
        loop = PolicyLoop(OneWorker(worker), learner, settings, partial(training_tasks, (0, 1000), 7))
        loop.sync()
        return loop, loop.step()
    finally:
        worker.close()


def made_the_better_more_likely(loop: PolicyLoop, step: Step) -> bool:
    """Whether log-probabilities moved with the advantages: their product is positive in sum, and so is what separates good from bad."""
    assert step.batch is not None and step.measured is not None
    mask, advantages = step.batch.mask, step.batch.advantages
    moved = loop.learner.score(step.batch).logprobs - step.measured.logprobs
    apart = float(np.mean(moved[mask & (advantages > 0)]) - np.mean(moved[mask & (advantages <= 0)]))
    return float((advantages * moved)[mask].sum()) > 0 and apart > 0
