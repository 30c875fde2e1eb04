"""A loop that is broken off after any step and goes on from what was saved equals one that never stopped, bit by bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_recorded_steps import SIZE, TEXTS, UNSTEADY, OneWorker, scripted

from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import REWARDS, reward
from burnish.rewards.types import RewardInput
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.weights import ParityBound
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.batch import TokenBatch
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.learner.optimizer import learning_rate
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.models.importing import new_model
from burnish.trainer.objectives.config import ObjectiveConfig
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.schedule.progress import PolicyProgress

pytestmark = pytest.mark.unit

STEPS = 8
PHASE = RFTPhaseConfig(
    steps=STEPS, groups_per_step=1, group_size=3, max_refills=0, lr=1e-3, warmup_steps=2, schedule="cosine",
    objective=ObjectiveConfig(kl_coef=0.05),
)  # fmt: skip
LIMITS = RolloutConfig(max_tokens_per_turn=6, concurrency=8)
REWARD = "resumed/now-and-then-v1"
TEACHES_NOTHING, IS_NOT_FINITE = (1, 2, 5), (3, 6)
"""Numbers of the tasks whose episodes all get the same reward, and of those whose update is refused. Each step takes one task."""


def now_and_then(episode: RewardInput) -> float:
    """Equal for the tasks that teach nothing, and otherwise the length of the answer."""
    return 0.5 if int(episode.task.id.removeprefix("train-")) in TEACHES_NOTHING else float(len(episode.messages[-1].text))


class Refusing(Learner):
    """Finds the gradient of some tasks' batches not to be finite: a function of the batch, so the same after a resume."""

    refused: frozenset[int] = frozenset()

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        self.last = int(batch.token_ids.sum())
        return super().forward_backward(batch, objective)

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        if self.last in self.refused:
            self.discard()
            raise FloatingPointError("not applied")
        return super().step(scale, phase_step)


@dataclass
class Played:
    """Metrics of the steps taken, the position after the last of them, and the weights."""

    rows: list[dict[str, float]]
    sums: list[int]
    progress: dict[str, Any]
    weights: dict[str, np.ndarray]


def play(model: Path, steps: int, saved: Path | None = None, save_to: Path | None = None, refused: frozenset[int] = frozenset()) -> Played:
    """`steps` steps of a new loop and learner, from the beginning or from what was saved. save_to: where to save after each step."""
    if REWARDS.loaded(REWARD) is None:
        reward(REWARD)(now_and_then)
    setup = WorkerSetup(
        model, "burnish/Arithmetic-v0", rewards=(RewardConfig(use=REWARD),), environment_weight=0.0, rollout=LIMITS,
        engine=EngineConfig(max_context=128), seed=5,
    )  # fmt: skip
    worker = RolloutWorker(setup, "rollout-1", engine=ScriptedEngine(scripted, max_context=128))
    try:
        config = LearnerConfig(threads=1)
        learner = Refusing(model, config.model_copy(update={"optimizer": phase_optimizer(config.optimizer, PHASE)}), seed=3)
        learner.refused = refused
        settings = LoopSettings(PHASE, LIMITS, "now-and-then", ParityBound(inf, inf))
        loop = PolicyLoop(OneWorker(worker), learner, settings, partial(training_tasks, (0, 1000), 7))
        if saved is not None:
            learner.restore(saved / "learner")
            loop.progress = PolicyProgress.from_row(json.loads((saved / "progress.json").read_text()))
        loop.sync()
        rows, sums = [], []
        for _ in range(steps):
            step = loop.step()
            rows.append({name: value for name, value in step.metrics.items() if not name.endswith(UNSTEADY)})
            sums.append(0 if step.batch is None else int(step.batch.token_ids.sum()))
            if save_to is not None:
                learner.save(save_to / str(len(rows)) / "learner")
                (save_to / str(len(rows)) / "progress.json").write_text(json.dumps(loop.progress.row()))
        return Played(rows, sums, loop.progress.row(), learner.weights())
    finally:
        worker.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "resumed"
    new_model(TEXTS, folder, SIZE)
    return folder


def test_a_resumed_loop_equals_one_that_never_stopped_at_every_step(model: Path, tmp_path: Path) -> None:
    refused = frozenset(play(model, STEPS).sums[step] for step in IS_NOT_FINITE)
    whole = play(model, STEPS, save_to=tmp_path, refused=refused)
    assert [row["groups_trained"] == 0 for row in whole.rows] == [step in TEACHES_NOTHING for step in range(STEPS)]
    assert [step for step, row in enumerate(whole.rows) if "learner/updates_skipped" in row] == list(IS_NOT_FINITE)
    states = [json.loads((tmp_path / str(at) / "progress.json").read_text()) for at in range(1, STEPS)]
    every = phase_optimizer(LearnerConfig().optimizer, PHASE)
    learned = [(step, row["learner/lr"]) for step, row in enumerate(whole.rows) if "learner/lr" in row]
    assert learned == [(step, pytest.approx(learning_rate(every, step))) for step, _ in learned], (
        "the rate falls with the steps of the loop"
    )
    assert {state["idle"] for state in states} == {0, 1, 2} and {state["skipped"] for state in states} == {0, 1}
    for at in range(1, STEPS):
        after = play(model, STEPS - at, tmp_path / str(at), refused=refused)
        assert after.rows == whole.rows[at:], f"broken off after step {at}"
        assert after.progress == whole.progress
        for name, tensor in whole.weights.items():
            np.testing.assert_array_equal(after.weights[name], tensor, err_msg=f"{name}, broken off after step {at}")
