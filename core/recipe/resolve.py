"""One `resolve(recipe) -> ResolvedRun`: what a run does, in pieces that the parts of burnish already own.

Everything after it (plan, pipeline, cluster, demo, a loop of one's own) reads the `ResolvedRun` or one of its pieces, never the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from burnish.envs.pydantic_words import few_lines
from burnish.envs.registry import load_plugin
from burnish.recipe import machine
from burnish.recipe.checks import REMOTE_ENVIRONMENT, cross_problems
from burnish.recipe.config import RunConfig
from burnish.recipe.limits import LimitsConfig
from burnish.recipe.load import config_data, config_from_record
from burnish.recipe.phase_run import PhaseRun, phase_runs
from burnish.recipe.placement import SHARE_FOR_VLLM, Placement, machine_problems, placement_of
from burnish.recipe.platforms import Platform
from burnish.recipe.services import ServiceConfig
from burnish.recipe.tracking import TrackingConfig
from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.store.keeping import EpisodesConfig, Keeping
from burnish.rollout.worker import BlendedEnvironment, WorkerSetup
from burnish.rpc.address import with_addresses
from burnish.trainer.data.config import SeedRange, TasksConfig
from burnish.trainer.evaluation.config import EvaluationConfig, RetentionConfig
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.models.best import BestBy
from burnish.trainer.phases.common import Phase, PhaseConfig
from burnish.trainer.phases.rates import with_rate
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.watch.guards import GuardsConfig

if TYPE_CHECKING:
    from burnish.trainer.evaluation.suites.suite import Suite

P = TypeVar("P", bound=PhaseConfig)

RUNS = Path("runs")
"""Where run folders go."""


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """The environment by its id, the module that registers it ("" when none has to be imported), what it is made with, where strings
    `service:NAME` stand for addresses, and what its own reward counts."""

    id: str
    module: str
    args: Mapping[str, Any]
    weight: float

    @property
    def is_remote(self) -> bool:
        """Whether it is one behind gRPC."""
        return self.id == REMOTE_ENVIRONMENT


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where tasks come from: a range of seeds, or files that count instead. Supervised examples are made from the seeds either way."""

    train_seeds: SeedRange
    files: TasksConfig | None


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A recipe with every default filled in, every part in the form that its owner takes, on a platform that is known.

    model: as the recipe names it; `find_model` gives the folder. rewards: every scorer of the rubric, the short form written out. success:
    the part of the reward that is reported as success. phases: those that run, in order. keep_checkpoints: how many stay, beside the last
    of each phase. learner: as the first phase has it. placement: who takes what of the cluster. record: the recipe as plain JSON
    data, what a run folder's `config.json` holds.

    Example: `resolve(load_config("recipes/arithmetic.toml")).phase("rft").optimizer.lr`.
    """

    name: str
    model: str
    seed: int
    platform: Platform
    environment: EnvironmentSpec
    plugins: tuple[str, ...]
    rewards: tuple[RewardConfig, ...]
    success: str
    services: Mapping[str, ServiceConfig]
    tasks: TaskSource
    phases: tuple[PhaseRun, ...]
    evaluation: EvaluationConfig
    retention: RetentionConfig | None
    guards: GuardsConfig
    rollout: RolloutConfig
    engine: EngineConfig
    learner: LearnerConfig
    limits: LimitsConfig
    episodes: EpisodesConfig
    tracking: TrackingConfig
    placement: Placement
    keep_checkpoints: int
    record: Mapping[str, Any]

    def phase(self, name: Phase) -> PhaseRun:
        """A phase that runs."""
        found = [phase for phase in self.phases if phase.name == name]
        assert found, f"phase {name} is not in this recipe"
        return found[0]

    def beginning_with(self, name: Phase) -> ResolvedRun:
        """The same with a learner that has the adapters of this phase, and not of the first, sent as the recipe says if there are any."""
        lora = self.phase(name).lora
        engine = self.engine if lora is not None else self.engine.model_copy(update={"adapters": None})
        return replace(self, learner=self.learner.model_copy(update={"lora": lora}), engine=engine)

    @property
    def reinforced(self) -> tuple[RFTPhaseConfig, ...]:
        """The tables of reinforcement fine-tuning, in order."""
        return tuple(phase.table for phase in self.phases if isinstance(phase.table, RFTPhaseConfig))

    @property
    def rft(self) -> RFTPhaseConfig | None:
        """The first of them, None when reinforcement is no phase of this run."""
        return next(iter(self.reinforced), None)

    @property
    def best_by(self) -> Mapping[Phase, BestBy | None]:
        """What says which step each phase goes back to at its end, None where it does not."""
        return {phase.name: phase.table.best_by for phase in self.phases}

    @property
    def keeping(self) -> Keeping:
        """What the run's store keeps."""
        return Keeping(self.episodes, self.seed, tuple(phase.name for phase in self.phases))

    @property
    def suites(self) -> tuple[Suite, ...]:
        """The suites of `[retention]`. Raises ValueError when one is not there, or unfit."""
        if self.retention is None:
            return ()
        from burnish.trainer.evaluation.suites.finding import find_suites

        for plugin in self.plugins:
            load_plugin(plugin)
        return find_suites(self.retention.suites)

    def worker_setup(self, model: Path, addresses: Mapping[str, str], seed: int) -> WorkerSetup:
        """What every env runner is built from, once the model's folder and the services' addresses are known. seed: of all sampling."""
        return WorkerSetup(
            model=model.resolve(),
            environment=self.environment.id,
            environment_args=with_addresses(self.environment.args, addresses),
            environment_weight=self.environment.weight,
            rewards=tuple(
                entry.model_copy(update={"verifier": with_addresses(entry.verifier, addresses)}) if entry.verifier else entry
                for entry in self.rewards
            ),
            rollout=self.rollout,
            engine=self.engine,
            plugins=tuple(os.path.realpath(plugin) for plugin in self.plugins),
            modules=(_absolute(self.environment.module),) if self.environment.module else (),
            seed=seed,
            blended=(
                *(
                    BlendedEnvironment(one.called, one.environment, with_addresses(one.environment_args, addresses))
                    for one in (self.rft.blend if self.rft else ())
                ),
                *(suite.played_by for suite in self.suites if suite.kind == "answers"),
            ),
            folder=str(Path.cwd()),
            cancel_s=self.limits.cancel_s,
            success=self.success,
        )


def _absolute(module: str) -> str:
    """A module's name as it is, the path of a `.py` file in full: workers may start elsewhere."""
    return os.path.realpath(module) if module.endswith(".py") else module


def resolve(config: RunConfig, *, planning: bool = False) -> ResolvedRun:
    """Everything that follows from a recipe, on the platform that it names or that this machine suggests.

    planning: for a plan alone, of which the GPUs may be elsewhere; the plan says that they are not here.
    Raises ValueError, one line per problem, when its tables contradict each other or this machine lacks the GPUs that it asks for.
    """
    if config.platform == "auto":  # made in Python, not read
        config = config_from_record(config_data(config))
    config = _with_rate(config)
    assert config.platform != "auto"
    here = machine.this_machine()
    placement = placement_of(config, here)
    problems = [*cross_problems(config), *(() if planning else machine_problems(placement, here))]
    if problems:
        raise ValueError(few_lines(problems))
    phases = phase_runs(config)
    return ResolvedRun(
        name=config.name,
        model=config.model,
        seed=config.seed,
        platform=config.platform,
        environment=environment_of(config),
        plugins=config.plugins,
        rewards=config.scorers,
        success=config.success,
        services=config.services,
        tasks=TaskSource(config.train_seeds, config.tasks),
        phases=phases,
        evaluation=config.evaluation,
        retention=config.retention,
        guards=config.guards,
        rollout=config.rollout,
        engine=_engine(config.engine, placement),
        learner=config.learner.model_copy(update={"lora": phases[0].lora}),
        limits=config.limits,
        episodes=config.episodes,
        tracking=config.tracking,
        placement=placement,
        keep_checkpoints=config.keep_checkpoints,
        record=config_data(config),
    )


def environment_of(config: RunConfig) -> EnvironmentSpec:
    """The environment that a config names."""
    module, _, id = config.environment.rpartition(":")
    return EnvironmentSpec(id, module, config.environment_args, config.environment_weight)


def _with_rate(config: RunConfig) -> RunConfig:
    """The default rate of reinforcement written out, once the model that it follows from is here: a source is imported on first use."""
    if all(table.lr is not None for table in config.tables):
        return config
    from burnish.trainer.models.finding import find_model

    try:
        folder = find_model(config.model, need_weights=False)
    except ValueError:
        return config  # whoever goes on needs the model, and says what is wrong with it

    def rated(table: P) -> P:
        without = isinstance(table, RFTPhaseConfig) and table.lr is None
        return with_rate(table, folder, table.adapters(config.learner.lora)) if without else table  # type: ignore[return-value, arg-type]

    phases = tuple(map(rated, config.phases))
    return config.model_copy(update={"rft": None if config.rft is None else rated(config.rft), "phases": phases})


def _engine(engine: EngineConfig, placement: Placement) -> EngineConfig:
    """On a share of a GPU, the engine takes its share of the memory."""
    if not 0 < placement.engine_gpus < 1 or engine.gpu_memory_fraction is not None:
        return engine
    return engine.model_copy(update={"gpu_memory_fraction": round(SHARE_FOR_VLLM * placement.engine_gpus, 4)})
