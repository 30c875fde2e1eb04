"""What it saves to sample while the learner learns: seconds per step of the three schedules, side by side, round by round.

`make bench` runs it (five to ten minutes) and writes `docs/schedules-performance.md`. `python -m benchmarks.bench_schedules` only prints.

Loop, worker, conversations, environment and weight hand-out are the real ones, in this process. Engine and learner wait instead of
computing, so that each has a core of its own on any machine: what is measured is the schedule, and what it adds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from burnish.envs.contract import Observation, register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import EpisodeGroup, Float32, Int32, Message, Task
from burnish.rollout.busy import shares
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.weights import ParityBound, SyncReceipt, WeightSnapshot, snapshot
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.batch import TokenBatch
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.schedule.admission import Rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "schedules-performance.md"
SCHEDULES: tuple[Rollouts, ...] = ("sync", "one_step_off", "async")
ROUNDS = 5
WARM_UP, STEPS = 1, 4
GROUPS, GROUP_SIZE, PLACES = 8, 4, 16
TOOL_S, TOKEN_S, LEARN_S = 0.2, 0.03, 2.0
MAX_TURNS = 16
AGAINST_SYNC, AGAINST_PARTS = 0.7, 1.15
TEXTS = [f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0 verdict {('pass', 'rework', 'scrap')[i % 3]}" for i in range(200)]


class SlowTool(gymnasium.Env[Observation, str]):
    """Answers after `TOOL_S`. Most episodes have a turn or two, a few sixteen: a tail as heavy as 1 / turns, drawn by the first answer."""

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._left: int | None = None
        return (Message("user", f"part {seed}"),), {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        time.sleep(TOOL_S)
        drawn = zlib.crc32(action.encode()) / 2**32
        self._left = min(int(1 / (1 - drawn)), MAX_TURNS) if self._left is None else self._left
        self._left -= 1
        return (Message("user", "bore 1.0"),), drawn, self._left == 0, False, {}


def answer(request: GenerateRequest) -> list[int]:
    """Two to eight tokens, as the request's seed says."""
    random = np.random.default_rng(request.seed)
    return [*(int(token) for token in random.integers(20, 290, int(random.integers(1, 8)))), request.stop_token_ids[0]]


class WaitingLearner:
    """Takes its time over each update, and leaves everything as it was but the version."""

    def __init__(self, learns_s: float) -> None:
        self.version, self.learns_s = 0, learns_s

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        time.sleep(self.learns_s)
        return self.score(batch)

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        return Measured(np.full(len(batch.mask), -0.5, np.float32), np.zeros(len(batch.mask), np.float32), {}, {"loss": 0.0})

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        self.version += 1
        return {"seconds": self.learns_s}

    def discard(self) -> None:
        pass

    def snapshot(self) -> WeightSnapshot:
        return snapshot(self.version, {"weight": np.full(1, self.version, np.float32)})


class LocalFleet:
    """One worker in this process."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker = worker

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self.worker.submit(tasks, group_size, temperature)

    def poll(self) -> list[EpisodeGroup]:
        return self.worker.sample(0.02)

    def sync(self, weights: WeightSnapshot) -> list[SyncReceipt]:
        return [self.worker.update_weights(weights, 60.0)]

    def stop(self) -> None:
        self.worker.cancel()

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        return {"local": self.worker.score([ids.tolist() for ids in sequences])}


@dataclass(frozen=True)
class Run:
    """Seconds of a step, the share of the time in which engine and learner were busy, and the mean age of tokens, over all steps."""

    step_s: float
    engine: float
    learner: float
    staleness: float


def run(model: Path, rollouts: Rollouts, learns_s: float = LEARN_S) -> Run:
    limits = RolloutConfig(max_turns=MAX_TURNS, max_tokens_per_turn=8, concurrency=PLACES)
    setup = WorkerSetup(model, "bench/SlowTool-v0", rollout=limits, engine=EngineConfig(max_context=1024), seed=7)
    engine = ScriptedEngine(answer, name="local", max_context=1024)
    engine.token_s = TOKEN_S
    worker = RolloutWorker(setup, "local", engine=engine)
    try:
        phase = RFTPhaseConfig(
            steps=1_000, groups_per_step=GROUPS, group_size=GROUP_SIZE, rollouts=rollouts, equal_groups="keep", checkpoint_every=1_000
        )
        settings = LoopSettings(phase, limits, "env", ParityBound(np.inf, np.inf))
        loop = PolicyLoop(LocalFleet(worker), WaitingLearner(learns_s), settings, partial(training_tasks, (0, 1_000_000), 3))
        loop.sync()
        for _ in range(WARM_UP):
            loop.step()
        began, steps = time.monotonic(), [loop.step() for _ in range(STEPS)]
        took = time.monotonic() - began
        worked = shares(loop.account.total)
        age = statistics.mean(step.metrics["learner/staleness_mean"] for step in steps)
        return Run(took / STEPS, worked["engine"], worked["learner"], age)
    finally:
        worker.close()


def run_all() -> list[dict[str, Run]]:
    """Every schedule once a round, and sampling alone: an `async` run whose learner takes no time."""
    register_env("bench/SlowTool-v0", SlowTool)
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        new_model(TEXTS, model, ModelSize(hidden=64, layers=1, heads=2, intermediate=64, vocab_size=300, max_position=1024))
        for number in range(ROUNDS):
            found: dict[str, Run] = {name: run(model, name) for name in SCHEDULES}
            found["sampling alone"] = run(model, "async", learns_s=0.0)
            rounds.append(found)
            print(f"round {number + 1}: " + ", ".join(f"{name} {one.step_s:.2f} s" for name, one in found.items()), flush=True)
    return rounds


def ratios(rounds: list[dict[str, Run]], name: str) -> list[float]:
    """Of a step's seconds to those of `sync`, round by round."""
    return [found[name].step_s / found["sync"].step_s for found in rounds]


def against_parts(rounds: list[dict[str, Run]]) -> list[float]:
    """Of an async step's seconds to the longer of sampling alone and learning alone, round by round."""
    return [found["async"].step_s / max(found["sampling alone"].step_s, LEARN_S) for found in rounds]


def page(rounds: list[dict[str, Run]]) -> str:
    def row(name: str) -> str:
        one = [found[name] for found in rounds]
        step_s, engine, learner, age = (
            statistics.median(getattr(run, key) for run in one) for key in ("step_s", "engine", "learner", "staleness")
        )
        ratio = statistics.median(ratios(rounds, name))
        return f"| {name} | {step_s:.2f} | {ratio:.2f} | {engine:.0%} | {learner:.0%} | {age:.1f} |"

    rows = "\n".join(row(name) for name in (*SCHEDULES, "sampling alone"))
    against_sync, parts = ratios(rounds, "async"), against_parts(rounds)
    each = ", ".join(f"{ratio:.2f}" for ratio in against_sync)
    return f"""# How much time schedules save

`make bench` wrote this page, on {os.cpu_count()} cores with a load of {os.getloadavg()[1]:.0f}. Loop, worker, conversations, environment
and the hand-out of weights are the real ones, in one process. Engine and learner wait instead of computing, as if each had a core of its
own: what is measured is the schedule.

A step is {GROUPS} tasks of {GROUP_SIZE} episodes, {PLACES} episodes at once. A turn samples 2 to 8 tokens of {TOKEN_S * 1e3:.0f} ms
and calls a tool that takes {TOOL_S * 1e3:.0f} ms; most episodes have one turn or two, and the longest {MAX_TURNS}, with a tail as heavy as
1 / turns. An update takes {LEARN_S:g} s. Each of {ROUNDS} rounds runs every schedule over {STEPS} steps, after {WARM_UP} that does not
count; figures are medians over rounds, ratios are made within a round. `async` has `max_staleness = 2`; "sampling alone" is an `async`
run whose updates take no time.

| `rollouts` | seconds a step | of `sync` | engine busy | learner busy | mean staleness |
|---|---|---|---|---|---|
{rows}

- An `async` step takes {statistics.median(against_sync):.2f} of a `sync` step ({each} in the rounds); at most {AGAINST_SYNC} is aimed at.
- It takes {statistics.median(parts):.2f} of the longer of sampling alone and learning alone ({min(parts):.2f} to {max(parts):.2f} in the
  rounds); at most {AGAINST_PARTS} is aimed at.

[schedules.md](schedules.md) says when to use which.
"""


def test_async_steps_take_less_time_than_synchronous_ones() -> None:
    rounds = run_all()
    PAGE.write_text(page(rounds), encoding="utf-8")
    assert statistics.median(ratios(rounds, "async")) <= AGAINST_SYNC
    assert statistics.median(against_parts(rounds)) <= AGAINST_PARTS


if __name__ == "__main__":
    print(page(run_all()))
