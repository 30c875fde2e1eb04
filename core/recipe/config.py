"""The config of a run: one TOML file, composed from the configs that each component owns.

    name = "quality-inspection"
    model = "nano"
    environment = "burnish/QualityInspection-v0"
    reward_function = "burnish/inspection-cost-v1"
    multi_turn_rollouts = true

is a whole recipe; every table below has defaults. Relative paths are relative to the folder that burnish is started in.

Here are the fields and what is wrong with a single one; `load.py` reads files, `checks.py` holds what the tables must agree on, and
`resolve.py` makes of them what the rest of burnish reads.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from burnish.envs.registry import ID_PATTERN
from burnish.recipe.limits import LimitsConfig
from burnish.recipe.resources import ResourcesConfig
from burnish.recipe.services import ServiceConfig
from burnish.recipe.tracking import TrackingConfig
from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.store.keeping import EpisodesConfig
from burnish.trainer.data.config import TRAIN_SEEDS, SeedRange, TasksConfig
from burnish.trainer.evaluation.config import EvaluationConfig, RetentionConfig
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.phases.common import PhaseConfig
from burnish.trainer.phases.cpt import CPTConfig
from burnish.trainer.phases.dpo import DPOConfig
from burnish.trainer.phases.midtrain import MidtrainConfig
from burnish.trainer.phases.registry import KINDS, AnyPhase
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.phases.sft import SFTConfig
from burnish.trainer.watch.guards import GuardsConfig

MULTI_TURN_DEFAULT = 8

P = TypeVar("P", bound=PhaseConfig)


class RunConfig(BaseModel):
    """A whole recipe.

    name: of the run and its folder. model: a run or a checkpoint to go on from, a model folder, a name under `models/`, or a source that
    `burnish models import` takes. platform: "cpu", "gpu", or "auto", which is gpu where torch sees one on this machine; it chooses between
    the tables `[cpu.…]` and `[gpu.…]` of a recipe, which are laid over the others (docs/gpus.md) and which a config holds no more.
    environment: an id of `burnish env list`, or `module:namespace/Name-v0` for one that importing `module` registers with Gymnasium.
    environment_args: what it is made with; in it a string `service:NAME` becomes the address of that service. environment_weight: what the
    environment's own reward counts in the total. reward_function: an id of a reward plug-in, or several, each with weight 1; `[[rewards]]`
    is the long form. success: the part of the reward that is reported as success; it lies in [0, 1]. multi_turn_rollouts: whether the
    policy speaks more than once per episode. train_seeds: the range that training tasks come from, `[first, last + 1]`; `[tasks]` names
    files that they come from instead. phases: what runs, in any order and number (docs/phases.md); left out, the plain tables run in the
    order of their kinds. keep_checkpoints: how many stay on disk, beside the last of each phase. plugins: Python files that
    register environments, rewards and objectives, by paths from the folder that burnish is started in. seed: of everything random.

    What the tables must agree on is checked where a config is read (`load_config`) or resolved (`resolve`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description='made of letters, digits, ".", "_" and "-"')
    model: str = Field(min_length=1, description="a folder, a name under models/, or a source that `burnish models import` takes")
    platform: Literal["auto", "cpu", "gpu"] = "auto"
    environment: str = Field(description='an id of `burnish env list`, for example "burnish/Arithmetic-v0"')
    environment_args: dict[str, Any] = {}
    environment_weight: float = 1.0
    reward_function: tuple[str, ...] = ()
    rewards: tuple[RewardConfig, ...] = ()
    success: str = "env"
    multi_turn_rollouts: bool = False
    seed: int = Field(default=0, ge=0, lt=2**31)
    train_seeds: SeedRange = TRAIN_SEEDS
    keep_checkpoints: int = Field(default=2, ge=1)
    plugins: tuple[str, ...] = ()
    services: dict[str, ServiceConfig] = {}
    tasks: TasksConfig | None = None
    cpt: CPTConfig | None = None
    midtrain: MidtrainConfig | None = None
    sft: SFTConfig | None = None
    dpo: DPOConfig | None = None
    rft: RFTPhaseConfig | None = None
    phases: tuple[AnyPhase, ...] = ()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    retention: RetentionConfig | None = None
    guards: GuardsConfig = GuardsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    limits: LimitsConfig = LimitsConfig()
    episodes: EpisodesConfig = EpisodesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("reward_function", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("environment")
    @classmethod
    def _environment_id(cls, value: str) -> str:
        if not ID_PATTERN.match(value.rpartition(":")[2]):
            raise ValueError(f"{value!r} must read namespace/Name-v0 or module:namespace/Name-v0, for example 'burnish/Arithmetic-v0'")
        return value

    @field_validator("reward_function")
    @classmethod
    def _reward_ids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        bad = [id for id in value if not ID_PATTERN.match(id)]
        if bad:
            raise ValueError(f"{bad[0]!r} must read namespace/name-v1, for example 'my-team/reward-v1'")
        return value

    @model_validator(mode="after")
    def _complete(self) -> RunConfig:
        """Fill in what follows from other answers."""
        if not self.tables:  # object.__setattr__: frozen for everyone else
            object.__setattr__(self, "rft", RFTPhaseConfig())
        if self.multi_turn_rollouts and "max_turns" not in self.rollout.model_fields_set:
            object.__setattr__(self, "rollout", self.rollout.model_copy(update={"max_turns": MULTI_TURN_DEFAULT}))
        if self.rft is not None:
            object.__setattr__(self, "rft", self._within(self.rft))
        object.__setattr__(self, "phases", tuple(map(self._within, self.phases)))
        return self

    def _within(self, table: P) -> P:
        """A table of reinforcement with what its objective takes from the rollout written out; any other as it is."""
        if not isinstance(table, RFTPhaseConfig):
            return table
        return table.model_copy(update={"objective": table.objective.within(self.rollout.sampled_tokens)})

    @property
    def scorers(self) -> tuple[RewardConfig, ...]:
        """Every scorer of the rubric, the short form written out."""
        return (*(RewardConfig(use=id) for id in self.reward_function), *self.rewards)

    @property
    def tables(self) -> tuple[PhaseConfig, ...]:
        """The phases that run, in order: those of `[[phases]]`, or the plain tables in the order of their kinds."""
        plain = (getattr(self, kind) for kind in KINDS)
        return self.phases or tuple(table for table in plain if table is not None)
