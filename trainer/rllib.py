"""Reinforcement fine-tuning as an RLlib `Algorithm`: `RFTConfig` and `RFT`.

    config = RFTConfig().rft(worker=WorkerSetup(Path("models/nano"), "burnish/Arithmetic-v0"))
    algo = config.build_algo()
    algo.train()

RLlib gives the frame: config, env runner group with restarts, callbacks, checkpoints, Tune. The learner group is ours
(`learner_group.py`), and so is the step (`policy_step.py`); this file only ties them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from ..envs.types import EpisodeGroup
from ..rollout.env_runner import LLMEnvRunner
from ..rollout.store.ledger import Ledger
from ..rollout.weights import PARITY_BOUND, SyncReceipt
from ..rollout.worker import WorkerSetup
from .data.task_files import read_task_files
from .data.tasks import TaskStream, row_tasks, training_tasks
from .fleet import RayFleet, raise_why_runners_died
from .learner.config import LearnerConfig
from .learner.group import RFTLearnerGroup
from .loop import Batch, PolicyProgress, collect_batch, rollout_metrics
from .models.folder import check_model_folder
from .observe import StepGauges
from .phases.config import RFTPhaseConfig, TasksConfig

PARITY_BOUNDS = {"float32": PARITY_BOUND, "bfloat16": 0.15, "float16": 0.05}
"""Largest |learner - engine| log-probability of a token under equal weights, by the coarser dtype of the two."""

MAX_IDLE_STEPS = 5
"""Steps in a row without a group to learn from after which the run stops: the policy has collapsed, or the task is solved."""


class NothingToLearn(RuntimeError):
    """For several steps, every group of episodes got equal rewards."""


class RFTConfig(AlgorithmConfig):  # type: ignore[misc]  # RLlib is untyped
    """Config of `RFT`; `rft(…)` sets what it adds to RLlib's."""

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class or RFT)
        self.worker_setup: WorkerSetup | None = None
        self.learner_setup = LearnerConfig()
        self.rft_phase = RFTPhaseConfig()
        self.train_seeds = (0, 1_000_000_000)
        self.task_files: TasksConfig | None = None
        self.success_part = "env"
        self.stall_s = 600.0
        self.learner_timeout_s = 3600.0
        self.env_runners(env_runner_cls=LLMEnvRunner, num_env_runners=1, create_local_env_runner=False, num_cpus_per_env_runner=1)
        self.fault_tolerance(restart_failed_env_runners=True, max_num_env_runner_restarts=3)
        self.framework("torch")

    def rft(
        self,
        *,
        worker: WorkerSetup,
        learner: LearnerConfig | None = None,
        phase: RFTPhaseConfig | None = None,
        train_seeds: tuple[int, int] | None = None,
        tasks: TasksConfig | None = None,
        success: str = "env",
        stall_s: float = 600.0,
        learner_timeout_s: float = 3600.0,
    ) -> RFTConfig:
        """Set the policy, environment and rewards (`worker`), the learner, and the phase.

        train_seeds: half-open range that training tasks come from; tasks: files that they come from instead. success: the reward part
        reported as success. stall_s: seconds without any finished group after which the run stops. learner_timeout_s: seconds one call
        of the learner may take.
        """
        self.worker_setup = worker
        self.learner_setup = learner or self.learner_setup
        self.rft_phase = phase or self.rft_phase
        self.train_seeds = train_seeds or self.train_seeds
        self.task_files = tasks or self.task_files
        self.success_part = success
        self.stall_s, self.learner_timeout_s = stall_s, learner_timeout_s
        return self

    def validate(self) -> None:
        super().validate()
        if self.worker_setup is None:
            raise ValueError("RFTConfig needs .rft(worker=WorkerSetup(model, environment)) before it can be built")
        check_model_folder(self.worker_setup.model)

    def get_multi_rl_module_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        """The policy is a Hugging Face model inside learner and engines, not an RLModule."""
        return MultiRLModuleSpec(rl_module_specs={})

    def build_learner_group(self, **kwargs: Any) -> RFTLearnerGroup:
        assert self.worker_setup is not None
        return RFTLearnerGroup(
            self.worker_setup.model, self.learner_setup, self.worker_setup.seed, self.num_gpus_per_learner, self.learner_timeout_s
        )

    def task_stream(self) -> TaskStream:
        """The tasks to train on, in their order. Raises ValueError when a file of tasks cannot be read."""
        assert self.worker_setup is not None
        if self.task_files is None:
            return partial(training_tasks, self.train_seeds, self.worker_setup.seed)
        return partial(row_tasks, read_task_files(self.task_files).train, self.worker_setup.seed)

    @property
    def parity_bound(self) -> float:
        """Largest log-probability difference that equal weights explain."""
        assert self.worker_setup is not None
        return max(PARITY_BOUNDS[self.worker_setup.engine.resolved_dtype], PARITY_BOUNDS[self.learner_setup.dtype])


class RFT(Algorithm):  # type: ignore[misc]  # RLlib is untyped
    """Reinforcement fine-tuning: sample groups, update on group-relative advantages (GRPO), send the weights out, prove they arrived.

    Metrics of the last step are in `last_metrics`, the episodes it sampled in `last_batch`. `on_group` is called with every group as it
    finishes.
    """

    on_group: Callable[[EpisodeGroup], None] | None = None
    last_metrics: Mapping[str, float]
    last_batch: Batch

    @classmethod
    def get_default_config(cls) -> RFTConfig:
        return RFTConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        try:
            super().setup(config)
        except IndexError as error:  # RLlib found no healthy runner and says no more than that
            raise_why_runners_died(self.env_runner_group, error)
        self.progress = PolicyProgress()
        self._stream = self.config.task_stream()
        self.parity_max, self.proofs = 0.0, 0
        self._gauges = StepGauges()
        self._idle = 0
        runners = self.env_runner_group._worker_manager.actors()
        self.fleet = RayFleet(dict(runners), self.config.stall_s, self.config.stall_s)
        self.sync()

    def training_step(self) -> None:
        """One policy step; raises what `collect_batch`, the learner or the sync proof raise."""
        setup, phase = self.config.worker_setup, self.config.rft_phase
        started = time.perf_counter()
        self.fleet.engines.clear()
        batch = collect_batch(self.fleet, self.progress, phase, setup.rollout, self._stream, self.on_group)
        sampled = time.perf_counter()
        metrics = {**rollout_metrics(batch, self.config.success_part), "rollout_seconds": sampled - started}
        metrics["episodes_per_second"] = metrics["episodes"] / metrics["rollout_seconds"]
        metrics |= self._update(batch) if batch.groups else self._idle_step()
        self.progress.ledger.settle(batch.groups)
        self.progress.ledger.check()
        self.progress.step += 1
        metrics["step_seconds"] = time.perf_counter() - started
        self.last_metrics, self.last_batch = metrics, batch
        self._gauges.show(metrics)
        for name, value in metrics.items():
            self.metrics.log_value(("rft", name), value, window=1)

    def sync(self) -> list[SyncReceipt]:
        """Send the learner's weights to every engine."""
        return self.fleet.sync(self.learner_group.snapshot())

    def _update(self, batch: Batch) -> dict[str, float]:
        self._idle = 0
        engines = {episode.id: self.fleet.engines[episode.id] for group in batch.groups for episode in group.episodes}
        metrics = self.learner_group.update_policy(batch.groups, engines, self.config.parity_bound)
        self.parity_max = max(self.parity_max, metrics["parity_max"])
        self.proofs += 1
        synced = time.perf_counter()
        receipts = self.sync()
        return {
            **{f"learner/{name}": value for name, value in metrics.items() if not name.startswith("parity_max/")},
            "sync_seconds": time.perf_counter() - synced,
            "weight_version": float(receipts[0].version),
        }

    def _idle_step(self) -> dict[str, float]:
        self._idle += 1
        if self._idle >= MAX_IDLE_STEPS:
            raise NothingToLearn(
                f"for {self._idle} steps all episodes of every group got equal rewards, so there is nothing to learn: the task is solved, "
                "out of reach, or the policy has collapsed; look at the last transcripts, and at rewards that tell attempts apart"
            )
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        return {**state, "rft": {"step": self.progress.step, "position": self.progress.position, "ledger": self.progress.ledger.row()}}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "rft" in state:
            own = state["rft"]
            self.progress = PolicyProgress(own["step"], own["position"], Ledger.from_row(own["ledger"]))

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self.sync()
