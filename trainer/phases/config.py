"""What a recipe says about the phases of training and about evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ...envs.rows import suffix_problem
from ..learner.config import OptimizerConfig
from ..objectives.config import ObjectiveConfig

Phase = Literal["cpt", "sft", "rft"]
PHASES: tuple[Phase, ...] = ("cpt", "sft", "rft")
"""In the order they run."""

MAX_SEED = 2**31 - 1

Schedule = Literal["constant", "cosine"]


def _check_range(seeds: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= seeds[0] < seeds[1] <= MAX_SEED:
        raise ValueError(f"[{seeds[0]}, {seeds[1]}] must be a range [first, last + 1] with 0 <= first < last + 1 <= {MAX_SEED}")
    return seeds


def _readable(path: str, prose: bool = False) -> str:
    unfit = suffix_problem(path, prose)
    if unfit is not None:
        raise ValueError(unfit)
    return path


SeedRange = Annotated[tuple[int, int], AfterValidator(_check_range)]
"""Task seeds as a half-open range `[first, end)`."""


TRAIN_SEEDS: SeedRange = (0, 1_000_000_000)
HELD_OUT_SEEDS: SeedRange = (1_000_000_000, 2_000_000_000)


class SupervisedConfig(BaseModel):
    """The `[cpt]` table (plain text, every token trains) and the `[sft]` table (conversations, assistant tokens train).

    steps: optimizer steps. batch: examples per step: conversations, or, for cpt, documents (one longer than `engine.max_context` tokens is
    cut into several). lr: peak learning rate, reached after warmup_steps; schedule: "constant", or "cosine" down to zero at the last
    step. checkpoint_every: steps between checkpoints.
    data: path of a file of rows (`{"text": …}` for cpt, `{"messages": […]}` for sft; `envs.rows` lists the forms) or, for cpt, of a text
    file with one document per paragraph. generate: instead of a file, `module:function` called as `function(seed, count, **args)`, giving
    texts (cpt) or conversations (sft). count: how many it makes, seen again once all were; None is steps x batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Schedule = "constant"
    checkpoint_every: int = Field(default=200, ge=1)
    data: str | None = None
    generate: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:function")
    args: dict[str, Any] = {}
    count: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> SupervisedConfig:
        if (self.data is None) == (self.generate is None):
            raise ValueError('needs exactly one of data = "PATH" and generate = "module:function"')
        if self.data is not None:
            idle = [key for key in ("args", "count") if key in self.model_fields_set]
            if idle:
                raise ValueError(f"{' and '.join(idle)} has no effect on data = …; it belongs to generate = …")
        return self

    @property
    def examples(self) -> int:
        """How many texts or conversations to generate."""
        return self.count or self.steps * self.batch


class CPTConfig(SupervisedConfig):
    """The `[cpt]` table: continued pre-training."""

    lr: float = Field(default=1e-3, gt=0, le=1)

    @field_validator("data")
    @classmethod
    def _documents(cls, value: str | None) -> str | None:
        return value if value is None else _readable(value, prose=True)


class SFTConfig(SupervisedConfig):
    """The `[sft]` table: supervised fine-tuning."""

    lr: float = Field(default=3e-4, gt=0, le=1)

    @field_validator("data")
    @classmethod
    def _conversations(cls, value: str | None) -> str | None:
        return value if value is None else _readable(value)


class RFTPhaseConfig(BaseModel):
    """The `[rft]` table: reinforcement fine-tuning on groups of episodes that are compared with each other.

    steps: optimizer steps. groups_per_step: tasks per step. group_size: episodes per task, whose rewards are compared with each other.
    lr, warmup_steps, schedule: as in the other phases. max_refills: further rounds of tasks a step may sample in place of groups whose
    episodes all got the same reward, which teach nothing. checkpoint_every: steps between checkpoints. objective: advantage and loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(default=100, ge=1)
    groups_per_step: int = Field(default=16, ge=1)
    group_size: int = 8
    lr: float = Field(default=1e-5, gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Schedule = "constant"
    max_refills: int = Field(default=2, ge=0)
    checkpoint_every: int = Field(default=20, ge=1)
    objective: ObjectiveConfig = ObjectiveConfig()

    @field_validator("group_size")
    @classmethod
    def _comparable(cls, value: int) -> int:
        if value < 2:
            raise ValueError(f"must be at least 2, not {value}: the episodes of one task are compared with each other")
        return value


PHASE_OWNS = frozenset({"lr", "warmup_steps", "schedule", "total_steps", "min_lr_ratio"})
"""What of an optimizer's settings belongs to a phase."""


def phase_optimizer(shared: OptimizerConfig, phase: SupervisedConfig | RFTPhaseConfig) -> OptimizerConfig:
    """The optimizer of a phase: the shared settings with the phase's rate, warm-up and schedule."""
    own: dict[str, Any] = {"lr": phase.lr, "warmup_steps": phase.warmup_steps, "schedule": phase.schedule}
    if phase.schedule == "cosine":
        own["total_steps"] = phase.steps
    kept = {key: getattr(shared, key) for key in OptimizerConfig.model_fields if key not in PHASE_OWNS}
    return OptimizerConfig(**kept, **own)


class TasksConfig(BaseModel):
    """The `[tasks]` table: tasks out of files instead of seeds.

    train, held_out: files of rows (`.jsonl` or another form that `envs.rows` reads), each
    `{"messages": […], "reference_answer": …}`. No row of held_out may be in train.
    The environment gets each as `options["task"]`, after its prompt was put to the policy; `burnish/SingleTurn-v0` adds nothing to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(min_length=1, description="the path of a file of rows")
    held_out: str = Field(min_length=1, description="the path of a file of rows")

    @field_validator("train", "held_out")
    @classmethod
    def _rows(cls, value: str) -> str:
        return _readable(value)


class EvaluationConfig(BaseModel):
    """The `[evaluation]` table: measuring the policy on held-out tasks.

    tasks: how many, taken from the start of seeds, or of tasks.held_out (all of its rows when it has fewer than the default).
    seeds: the held-out range, which no training task may come from.
    sampled: one episode per task at the rollout's temperature. greedy: one episode per task at temperature 0.
    before: measure the model the first phase starts from; after: measure after every phase.
    error_budget: share of an evaluation's episodes that may fail (of the infrastructure) before it is no result and ends the run, which
    resumes with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: int = Field(default=200, ge=1)
    seeds: SeedRange = HELD_OUT_SEEDS
    sampled: bool = True
    greedy: bool = True
    before: bool = True
    after: bool = True
    error_budget: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluationConfig:
        if not (self.sampled or self.greedy):
            raise ValueError("sampled and greedy are both false, so nothing would be measured; set one to true")
        if self.tasks > self.seeds[1] - self.seeds[0]:
            raise ValueError(f"tasks = {self.tasks} but seeds holds only {self.seeds[1] - self.seeds[0]}; widen seeds")
        return self
