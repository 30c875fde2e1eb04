"""Reinforcement fine-tuning as an RLlib `Algorithm`: `RFTConfig` and `RFT`.

    config = RFTConfig().rft(worker=WorkerSetup(Path("models/nano"), "burnish/Arithmetic-v0"))
    algo = config.build_algo()
    algo.train()

RLlib gives the frame: config, env runner group with restarts, callbacks, checkpoints, Tune. The step is `loop.py`, the learner group is
ours (`learner/group.py`), and so is the recovery of runners (`fleet.py`); this file only ties them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.utils.from_config import NotProvided
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from ..envs.types import EpisodeGroup
from ..rewards.config import declared_sizes
from ..rollout.env_runner import LLMEnvRunner
from ..rollout.transport.shipment import WHOLE_EVERY, Form
from ..rollout.weights import PARITY_BOUNDS, ParityBound, SyncReceipt
from ..rollout.worker import WorkerSetup
from .data.config import OWN, TRAIN_SEEDS, TasksConfig
from .data.task_files import read_task_files
from .data.tasks import TaskStream, blended_tasks, row_tasks, training_tasks
from .fleet import FleetLimits, RayFleet
from .learner.config import LearnerConfig
from .learner.group import LearnerGroup, LearnerLimits, learner_room
from .loop import LoopSettings, PolicyLoop, Step
from .models.folder import check_model_folder
from .observe import StepGauges
from .phases.common import PHASE_OWNS, phase_optimizer
from .phases.rates import with_rate
from .phases.rft import RFTPhaseConfig
from .restarts import Restarts
from .runners import StartLimits, await_runners, end_runners
from .schedule.progress import PolicyProgress
from .turnover import RunnerSource

_ACTS = frozenset({
    "framework_str", "log_level", "logger_config", "logger_creator", "min_time_s_per_iteration", "placement_strategy",
    "num_env_runners", "num_cpus_per_env_runner", "num_gpus_per_env_runner", "custom_resources_per_env_runner", "env_runner_cls",
    "create_local_env_runner", "restart_failed_env_runners", "max_num_env_runner_restarts", "delay_between_env_runner_restarts_s",
    "num_learners", "num_gpus_per_learner", "num_cpus_per_learner", "num_cpus_for_main_process",
    "custom_resources_for_main_process", "extra_python_environs_for_driver", "extra_python_environs_for_worker", "callbacks_class",
    "callbacks_on_algorithm_init", "callbacks_on_checkpoint_loaded", "callbacks_on_train_result",
})  # fmt: skip
"""What RLlib's own settings do here. Of the others, RLlib's learner, samplers and evaluation read nearly all, and none of those runs."""
_INSTEAD: Mapping[str, str] = {
    "lr": "phase=RFTPhaseConfig(lr=…)",
    "grad_clip": "learner=LearnerConfig(optimizer=OptimizerConfig(grad_clip=…))",
    "train_batch_size": "phase=RFTPhaseConfig(groups_per_step=…, group_size=…)",
    "minibatch_size": "phase=RFTPhaseConfig(minibatches=…)",
    "num_epochs": "phase=RFTPhaseConfig(epochs=…)",
    "env": "worker=WorkerSetup(model, environment)",
    "env_config": "worker=WorkerSetup(model, environment, environment_args=…)",
    "seed": "worker=WorkerSetup(model, environment, seed=…)",
}


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
        self.fleet_limits: FleetLimits | None = None
        self.learner_limits = LearnerLimits()
        self.env_runners(
            env_runner_cls=LLMEnvRunner,
            num_env_runners=1,
            create_local_env_runner=False,
            num_cpus_per_env_runner=1,
            validate_env_runners_after_construction=False,  # they are waited for in `RFT`, with an end
        )
        self.fault_tolerance(restart_failed_env_runners=True, max_num_env_runner_restarts=-1)  # the fleet counts
        self.framework("torch")

    def rft(
        self,
        *,
        worker: WorkerSetup = NotProvided,
        learner: LearnerConfig = NotProvided,
        phase: RFTPhaseConfig = NotProvided,
        train_seeds: tuple[int, int] = NotProvided,
        tasks: TasksConfig | None = NotProvided,
        success: str = NotProvided,
        fleet: FleetLimits | None = NotProvided,
        learner_limits: LearnerLimits = NotProvided,
    ) -> RFTConfig:
        """Set what is given; what is left out keeps the value it had.

        worker: the policy, environment and rewards. learner: how updates are computed. phase: steps, sizes, rate and objective; its rate,
        warm-up and schedule are what the optimizer uses, and `worker.rollout.temperature` is what the objective uses. train_seeds:
        half-open range that training tasks come from; tasks: files that they come from instead. success: the reward part reported as
        success. fleet: how long the fleet waits for runners; None is FleetLimits() with the worker's concurrency. learner_limits: how
        long it waits for learners.
        """
        given = {
            "worker_setup": worker,
            "learner_setup": learner,
            "rft_phase": phase,
            "train_seeds": train_seeds,
            "task_files": tasks,
            "success_part": success,
            "fleet_limits": fleet,
            "learner_limits": learner_limits,
        }
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def validate(self) -> None:
        if not self.in_evaluation:  # RLlib makes a config of its own for that, with other settings; it is read by nobody
            self._check_settings()
        super().validate()
        if self.worker_setup is None:
            raise ValueError("RFTConfig needs .rft(worker=WorkerSetup(model, environment)) before it can be built")
        check_model_folder(self.worker_setup.model)
        ignored = sorted(PHASE_OWNS & self.learner_setup.optimizer.model_fields_set)
        if ignored:
            raise ValueError(f"learner.optimizer.{ignored[0]} has no effect: it is the phase's; set RFTPhaseConfig({ignored[0]}=…)")

    def _check_settings(self) -> None:
        """Raise ValueError when one of RLlib's settings was changed that nothing here reads."""
        fresh, seen = type(self)(), type(self)()
        AlgorithmConfig.validate(seen)  # which RLlib changes by itself when a config is looked at
        known = [name for name in vars(AlgorithmConfig()) if not name.startswith("_") and name not in _ACTS]
        # A config that RLlib has copied holds the state of what a fresh one holds as objects: states are compared.
        mine, *others = (one.get_state() for one in (self, fresh, seen))
        ignored = sorted(name for name in known if mine.get(name) not in [other.get(name) for other in others])
        if ignored:
            instead = f".rft({_INSTEAD[ignored[0]]}) says it" if ignored[0] in _INSTEAD else ".rft(…) says what is trained, on what and how"
            raise ValueError(f"{ignored[0]} has no effect on RFTConfig, whose learner and runners are burnish's: {instead}")

    def get_multi_rl_module_spec(self, **kwargs: Any) -> MultiRLModuleSpec:
        """The policy is a Hugging Face model inside learner and engines, not an RLModule."""
        return MultiRLModuleSpec(rl_module_specs={})

    def build_learner_group(self, **kwargs: Any) -> LearnerGroup:
        worker, learner = self.worker_setup, self.learner_setup
        assert worker is not None
        learner = learner.model_copy(
            update={"optimizer": phase_optimizer(learner.optimizer, with_rate(self.rft_phase, worker.model, learner.lora))}
        )
        gpus, count = self.num_gpus_per_learner, max(1, self.num_learners)
        limits = replace(self.learner_limits, room=_ROOM.get())
        _ROOM.set(None)
        group = LearnerGroup(worker.model, learner, worker.seed, gpus, limits, worker.plugins, count, worker.folder)
        engine = worker.engine
        if engine.adapters is not None and learner.lora is None:
            raise ValueError("engine.adapters: has no effect on a learner without lora; remove it")
        form = Form(engine.resolved_dtype, engine.weight_deltas is not False, engine.whole_weights_every or WHOLE_EVERY)
        group.send_as(replace(form, adapters=learner.lora is not None and engine.adapters != "merged"))
        if self.rft_phase.critic is not None:
            group.begin_phase(learner.optimizer, self.rft_phase.critic)
        return group

    def task_stream(self) -> TaskStream:
        """The tasks to train on, from a position on."""
        assert self.worker_setup is not None
        seed, blend = self.worker_setup.seed, self.rft_phase.task_blend
        if self.task_files is None:
            own: TaskStream = partial(training_tasks, self.train_seeds, seed)
        else:
            own = partial(row_tasks, read_task_files(self.task_files).train, seed)
        if blend is None:
            return own
        others = {one.called: partial(training_tasks, TRAIN_SEEDS, seed) for one in self.rft_phase.blend}
        return partial(blended_tasks, blend, {OWN: own, **others})

    def loop_settings(self) -> LoopSettings:
        """What the policy loop is told."""
        assert self.worker_setup is not None
        sizes = declared_sizes(self.worker_setup.rewards, self.worker_setup.environment_weight, self.success_part)
        return LoopSettings(self.rft_phase, self.worker_setup.rollout, self.success_part, self.parity, sizes)

    @property
    def limits(self) -> FleetLimits:
        """How long the fleet waits for runners."""
        assert self.worker_setup is not None
        return self.fleet_limits or FleetLimits(concurrency=self.worker_setup.rollout.concurrency)

    @property
    def start_limits(self) -> StartLimits:
        """How long runners may take to start."""
        assert self.worker_setup is not None
        return StartLimits(self.learner_limits.place_s, self.worker_setup.engine.start_timeout_s + self.limits.answer_s)

    @property
    def asked_by_runners(self) -> Mapping[str, float]:
        """What each runner asks of the cluster."""
        asked = {"CPU": self.num_cpus_per_env_runner, "GPU": self.num_gpus_per_env_runner, **self.custom_resources_per_env_runner}
        return {name: amount for name, amount in asked.items() if amount}

    @property
    def parity(self) -> ParityBound:
        """How far learner and engine may be apart: as the coarser of their dtypes says."""
        assert self.worker_setup is not None
        dtypes = (self.worker_setup.engine.resolved_dtype, self.learner_setup.dtype)
        return max((PARITY_BOUNDS[dtype] for dtype in dtypes), key=lambda bound: bound.mean)


def _refused(name: str, instead: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(f"RFT does not {name}: {instead}")

    return method


_NO_MODULES = "its policy is a language model that the learner and the engines hold, not an RLModule; save_to_path keeps it"
_NO_EVALUATION = "`burnish evaluate`, or the session's evaluate, plays held-out tasks on the run's own engines"


_ROOM: ContextVar[PlacementGroup | None] = ContextVar("room", default=None)
"""What the algorithm that is being set up has of the cluster for its learners."""


@contextmanager
def _room_kept(config: AlgorithmConfig) -> Iterator[None]:
    """Keep room for the learners while an algorithm starts its engines: RLlib starts those first, on whichever nodes, and one that
    could have held all learners would have none left for them. Without learners, it is given back."""
    limits = config.learner_limits
    _ROOM.set(learner_room(max(1, config.num_learners), config.num_gpus_per_learner, limits.place_s, limits.node))
    try:
        yield
    finally:
        left = _ROOM.get()
        _ROOM.set(None)
        if left is not None:
            remove_placement_group(left)


class RFT(Algorithm):  # type: ignore[misc]  # RLlib is untyped
    """Reinforcement fine-tuning: `training_step` is one step of `self.loop`, a `PolicyLoop`; what it did is in `last_step`.

    `on_group` is called with every group as it finishes.
    """

    last_step: Step

    @classmethod
    def get_default_config(cls) -> RFTConfig:
        return RFTConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        # RLlib asks this between the making of its runners and its first call of one, which it waits for without end.
        self._should_create_evaluation_env_runners = self._await_runners
        try:
            with _room_kept(config):
                super().setup(config)
            self.fleet = RayFleet(dict(self.env_runner_group._worker_manager.actors()), self.config.limits, self._source())
            self.loop = PolicyLoop(self.fleet, self.learner_group, self.config.loop_settings(), self.config.task_stream())
            self._gauges = StepGauges()
            self.loop.sync()
        except BaseException:
            self._give_up()
            raise

    @property
    def on_group(self) -> Callable[[EpisodeGroup], None] | None:
        return self.loop.on_group

    @on_group.setter
    def on_group(self, call: Callable[[EpisodeGroup], None] | None) -> None:
        self.loop.on_group = call

    @property
    def last_metrics(self) -> Mapping[str, float]:
        return self.last_step.metrics

    def training_step(self) -> None:
        """One policy step; raises what `PolicyLoop.step` raises."""
        self.last_step = self.loop.step()
        self.show(self.last_step.metrics)
        for name, value in self.last_step.metrics.items():
            self.metrics.log_value(("rft", name), value, window=1)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Set the Ray metrics of a step. A policy step's are set as it ends; this is for steps that others take with the learners."""
        self._gauges.show(metrics)

    def sync(self) -> list[SyncReceipt]:
        """Send the learner's weights to every engine."""
        return self.loop.sync()

    def _await_runners(self, eval_config: AlgorithmConfig) -> bool:
        """In the place of an algorithm's own `_should_create_evaluation_env_runners`, once. Evaluation has no runners of its own."""
        del self._should_create_evaluation_env_runners
        await_runners(self.env_runner_group._worker_manager.actors(), self.config.asked_by_runners, self.config.start_limits)
        return False

    def _source(self) -> RunnerSource | None:
        """Where further runners come from; None where those at the start have places that were reserved for them, as Ray Tune does."""
        if get_current_placement_group() is not None:
            return None
        limits, group = self.config.limits, self.env_runner_group
        runners, tries = group._worker_manager, Restarts(limits.restarts, limits.restart_window_s)

        def start() -> tuple[int, Any]:
            index, config = runners._next_id, group._remote_config  # by value: Ray warns of arguments in its object store
            actor = group._make_worker(
                env_creator=group._env_creator, validate_env=None, worker_index=index, num_workers=index, config=config
            )
            runners.add_actors([actor])
            return index, actor

        start_s, asked = self.config.start_limits.start_s, self.config.asked_by_runners
        return RunnerSource(start, runners.remove_actor, asked, start_s, limits.sync_s, limits.close_s, tries)

    def _give_up(self) -> None:
        """Leave nothing of an algorithm that could not be set up: what waits for room would take it once there is some."""
        if getattr(self, "env_runner_group", None) is not None:
            self.env_runner_group._worker_manager.clear()
        super().cleanup()

    def cleanup(self) -> None:
        """End learners and runners. A runner that does not end by itself in time is killed, where RLlib would wait for it without end."""
        if self.env_runner_group is not None:
            if getattr(self, "fleet", None) is not None:
                self.fleet.close()
            runners = self.env_runner_group._worker_manager
            end_runners(runners.actors(), self.config.limits.close_s)
            runners.clear()  # which kills them
        super().cleanup()

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """The fleet brings runners back, with weights and tasks; RLlib's own way asks the learner for an RLModule that is not there."""
        return []

    evaluate = _refused("evaluate", _NO_EVALUATION)
    evaluate_offline = _refused("evaluate offline", _NO_EVALUATION)
    add_module = _refused("take modules", _NO_MODULES)
    remove_module = _refused("give modules up", _NO_MODULES)
    get_module = _refused("hand a module out", _NO_MODULES)
    add_policy = _refused("take policies", _NO_MODULES)
    remove_policy = _refused("give policies up", _NO_MODULES)
    get_policy = _refused("hand a policy out", _NO_MODULES)
    get_weights = _refused("hand weights out", _NO_MODULES)
    set_weights = _refused("take weights", _NO_MODULES)
    compute_actions = _refused("compute actions", "`burnish serve` answers over HTTP, `burnish evaluate` plays episodes")
    compute_single_action = _refused("compute actions", "`burnish serve` answers over HTTP, `burnish evaluate` plays episodes")

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        return {**state, "rft": self.loop.progress.row()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "rft" in state:
            self.loop.progress = PolicyProgress.from_row(state["rft"])

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self.sync()
