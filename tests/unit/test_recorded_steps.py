"""Ten training steps over a scripted engine, held to recorded metrics and weights: what a step computes must not move with the code.

`python tests/unit/test_recorded_steps.py` prints what `recorded_steps.json` holds; record again only when a step is meant to change.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.envs.types import EpisodeGroup, Float32, Int32, Task
from burnish.rewards.config import RewardConfig
from burnish.rewards.plugin import REWARDS, reward
from burnish.rewards.types import RewardInput
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.weights import ParityBound, SyncReceipt, WeightSnapshot
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.objectives.config import ObjectiveConfig
from burnish.trainer.phases.common import phase_optimizer
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.unit

RECORDED = Path(__file__).with_name("recorded_steps.json")
REWARD = "recorded/even-digits-v1"
TEXTS = [f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0 verdict {('pass', 'rework', 'scrap')[i % 3]}" for i in range(200)]
SIZE = ModelSize(hidden=64, layers=2, heads=2, intermediate=128, vocab_size=300, max_position=256)
STEPS = 10
UNSTEADY = ("seconds", "per_second")

RUNS: dict[str, tuple[RFTPhaseConfig, dict[str, Any], float]] = {
    "grpo": (RFTPhaseConfig(steps=STEPS, groups_per_step=4, group_size=4, lr=1e-3), {"microbatch_tokens": 256, "logit_rows": 64}, 1.0),
    "dr_grpo with a reference, an entropy bonus and a schedule": (
        RFTPhaseConfig(
            steps=STEPS,
            groups_per_step=4,
            group_size=4,
            lr=1e-3,
            warmup_steps=2,
            schedule="cosine",
            objective=ObjectiveConfig(advantage="dr_grpo", loss_args={"clip_high": 0.28}, kl_coef=0.05, entropy_coef=0.01),
        ),
        {"optimizer": {"weight_decay": 0.01}, "microbatch_tokens": 512, "logit_rows": 33},
        0.8,
    ),
}
"""Phase, learner and temperature by name."""


def even_digits(episode: RewardInput) -> float:
    """Even digits, and a little for each token that differs from its neighbour."""
    text = episode.messages[-1].text
    return sum(character in "02468" for character in text) / 4 + len(set(text)) / 100


def scripted(request: GenerateRequest) -> Reply:
    """Tokens and log-probabilities that depend on nothing but the request's seed."""
    random = np.random.default_rng(request.seed)
    count = int(random.integers(3, request.max_tokens + 1))
    tokens = [int(token) for token in random.integers(20, 290, count)]
    if random.random() < 0.7:
        tokens[-1] = request.stop_token_ids[0]
    return Reply(tokens, [float(x) for x in np.log(random.uniform(0.002, 0.006, count))])


class OneWorker:
    """A fleet of one worker in this process."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker = worker

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self.worker.submit(tasks, group_size, temperature)

    def stop(self) -> None:
        self.worker.cancel()

    def poll(self) -> list[EpisodeGroup]:
        return self.worker.sample(10.0)

    def sync(self, snapshot: WeightSnapshot) -> list[SyncReceipt]:
        return [self.worker.update_weights(snapshot, 10.0)]

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        return {"rollout-1": self.worker.score([ids.tolist() for ids in sequences])}


def play(model: Path, phase: RFTPhaseConfig, learning: dict[str, Any], temperature: float) -> dict[str, Any]:
    """Metrics of every step, and sum and norm of every weight after the last."""
    if REWARDS.loaded(REWARD) is None:
        reward(REWARD)(even_digits)
    limits = RolloutConfig(max_tokens_per_turn=12, concurrency=16, temperature=temperature)
    setup = WorkerSetup(
        model, "burnish/Arithmetic-v0", rewards=(RewardConfig(use=REWARD),), rollout=limits, engine=EngineConfig(max_context=128), seed=5
    )
    worker = RolloutWorker(setup, "rollout-1", engine=ScriptedEngine(scripted, max_context=128))
    try:
        config = LearnerConfig.model_validate({"threads": 1, **learning})
        learner = Learner(model, config.model_copy(update={"optimizer": phase_optimizer(config.optimizer, phase)}), seed=3)
        # The script's log-probabilities are nobody's, so no bound holds for their distance from the learner's.
        settings = LoopSettings(phase, limits, "even-digits", ParityBound(math.inf, math.inf))
        loop = PolicyLoop(OneWorker(worker), learner, settings, partial(training_tasks, (0, 1000), 7))
        loop.sync()
        rows = []
        for _ in range(STEPS):
            rows.append({name: value for name, value in sorted(loop.step().metrics.items()) if not name.endswith(UNSTEADY)})
        weights = {
            name: [float(array.astype(np.float64).sum()), float(np.linalg.norm(array.astype(np.float64)))]
            for name, array in sorted(learner.weights().items())
        }
    finally:
        worker.close()
    return {"steps": rows, "weights": weights, "ledger": loop.progress.ledger.row()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "recorded"
    new_model(TEXTS, folder, SIZE)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_give_what_was_recorded(name: str, model: Path) -> None:
    recorded, now = json.loads(RECORDED.read_text())[name], play(model, *RUNS[name])
    assert now["ledger"] == recorded["ledger"]
    for step, (was, found) in enumerate(zip(recorded["steps"], now["steps"], strict=True), 1):
        assert {key: found.get(key) for key in was} == {key: pytest.approx(value, rel=2e-4, abs=1e-6) for key, value in was.items()}, (
            f"step {step}"
        )
    for tensor, was in recorded["weights"].items():
        assert now["weights"][tensor] == pytest.approx(was, rel=1e-4, abs=1e-3), tensor


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        new_model(TEXTS, Path(scratch) / "model", SIZE)
        print(json.dumps({name: play(Path(scratch) / "model", *run) for name, run in RUNS.items()}, indent=1))
