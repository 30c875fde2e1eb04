"""What a recipe says about evaluation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...rollout.store.records import Mode
from ..data.config import HELD_OUT_SEEDS, SeedRange

EVERY_TASKS = 50
"""Of a measurement in the course of a phase, unless the recipe says otherwise or has fewer."""


class EvaluationConfig(BaseModel):
    """The `[evaluation]` table: measuring the policy on held-out tasks.

    tasks: how many, taken from the start of seeds, or of tasks.held_out (all of its rows when it has fewer than the default).
    seeds: the held-out range, which no training task may come from.
    sampled: one episode per task at the rollout's temperature. greedy: one episode per task at temperature 0.
    before: measure the model the first phase starts from; after: measure after every phase.
    every: steps of reinforcement between two measurements in the course of a phase, which is measured after its last step, too; left out,
    there are none (docs/phases.md). every_tasks: how many tasks each of those plays, always the first ones; left out, 50, or all where
    there are fewer. They are sampled, as in training, beside whose curve they stand; greedy with sampled = false.
    error_budget: share of an evaluation's episodes that may fail (of the infrastructure) before it is no result and ends the run, which
    resumes with it; a measurement between steps ends it at its step, and it resumes from the checkpoint before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: int = Field(default=200, ge=1)
    seeds: SeedRange = HELD_OUT_SEEDS
    sampled: bool = True
    greedy: bool = True
    before: bool = True
    after: bool = True
    every: int | None = Field(default=None, ge=1)
    every_tasks: int | None = Field(default=None, ge=1)
    error_budget: float = Field(default=0.1, ge=0, lt=1)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """How the policy is measured each time."""
        chosen: dict[Mode, bool] = {"sampled": self.sampled, "greedy": self.greedy}
        return tuple(mode for mode, wanted in chosen.items() if wanted)

    @property
    def mode_between(self) -> Mode:
        """How the policy is measured in the course of a phase."""
        return self.modes[0]

    @property
    def tasks_between(self) -> int:
        """How many tasks are played then, at most."""
        return min(EVERY_TASKS, self.tasks) if self.every_tasks is None else self.every_tasks

    @model_validator(mode="after")
    def _measures_between(self) -> EvaluationConfig:
        if self.every_tasks is not None and self.every is None:
            raise ValueError("every_tasks has no effect without every, the steps between two measurements; add that, or remove it")
        if self.every_tasks is not None and self.every_tasks > self.tasks:
            raise ValueError(f"every_tasks = {self.every_tasks} is more than tasks = {self.tasks}, of which it is the first; lower it")
        return self

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluationConfig:
        if not (self.sampled or self.greedy):
            raise ValueError("sampled and greedy are both false, so nothing would be measured; set one to true")
        if self.tasks > self.seeds[1] - self.seeds[0]:
            raise ValueError(f"tasks = {self.tasks} but seeds holds only {self.seeds[1] - self.seeds[0]}; widen seeds")
        return self


class RetentionConfig(BaseModel):
    """The `[retention]` table: skills that training must not lose (docs/evaluate.md).

    The base is measured twice, which shows what changes without training, and the model after every phase; the last checkpoint of a phase
    that lost too much is kept, and not promoted. A phase's own table may have limits of its own.
    suites: ids of `burnish suites`, or files (*.toml). items: of each, its own number when left out. samples: answers to each item.
    temperature: of answers, 0 for greedy ones. min_retention: the least share of each skill that must be left, above chance; 0 asks for
    nothing. max_lost: the largest share of the items of a suite that may be forgotten, guesses and what the base lost without training left
    out; 1 asks for nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    suites: tuple[str, ...] = Field(min_length=1, description="ids of `burnish suites`, or files")
    items: int | None = Field(default=None, ge=2)
    samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    min_retention: float = Field(default=0.95, ge=0, le=1)
    max_lost: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _samples_differ(self) -> RetentionConfig:
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples = {self.samples} at temperature 0 would say the same; give a temperature")
        return self

    def with_limits(self, min_retention: float | None, max_lost: float | None) -> RetentionConfig:
        """What a phase is held to: its own limits, and these where it has none."""
        own = {"min_retention": min_retention, "max_lost": max_lost}
        return self.model_copy(update={key: limit for key, limit in own.items() if limit is not None})

    @property
    def limits(self) -> str:
        """What is asked, in words. Example: "at least 95% of each kept, at most 10% of the items lost"."""
        kept = f"at least {self.min_retention:.0%} of each kept" if self.min_retention else "nothing asked of what is kept"
        return kept + (f", at most {self.max_lost:.0%} of the items lost" if self.max_lost < 1 else "")
