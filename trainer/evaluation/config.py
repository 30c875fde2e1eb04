"""What a recipe says about evaluation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...rollout.store.records import Mode
from ..phases.common import HELD_OUT_SEEDS, SeedRange


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

    @property
    def modes(self) -> tuple[Mode, ...]:
        """How the policy is measured each time."""
        chosen: dict[Mode, bool] = {"sampled": self.sampled, "greedy": self.greedy}
        return tuple(mode for mode, wanted in chosen.items() if wanted)

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluationConfig:
        if not (self.sampled or self.greedy):
            raise ValueError("sampled and greedy are both false, so nothing would be measured; set one to true")
        if self.tasks > self.seeds[1] - self.seeds[0]:
            raise ValueError(f"tasks = {self.tasks} but seeds holds only {self.seeds[1] - self.seeds[0]}; widen seeds")
        return self
