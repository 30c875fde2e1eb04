"""What all kinds of phase share: the settings of their tables, what a kind is, and what one is given and gives. Torch is not imported here.

A kind of phase is one file of this folder, with its table, its plan, its data and its steps, and one entry of `registry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...envs.types import Episode, Int32
from ...rollout.store.moments import PerEpisode
from ..batch import TokenBatch
from ..data.config import Making, RowsKind, SupervisedRows
from ..learner.config import LoRAConfig, OptimizerConfig
from ..loop import MAX_SKIPPED, PolicyLoop, Step
from ..models.best import BestBy
from ..models.manifest import DataUse, Stage
from ..objectives.measures import Measured
from ..objectives.objective import Objective
from ..updates import PolicyLearner, finite
from ..watch.guards import Alarm, Watch

Kind = Literal[RowsKind, "dpo", "rft"]
"""What a phase does. The registry has one entry for each."""
Phase = str
"""A phase's name in its run: its kind, unless the recipe calls it otherwise."""
NOT_NAMES = ("base", "evaluation", "retention", "tasks")
"""What a run's files call what is no phase."""

Schedule = Literal["constant", "cosine"]


REWARM = 20
"""Of how many steps one warms up, where a schedule decays and nothing else is said; `REWARM_STEPS` at most."""
REWARM_STEPS = 100


class PhaseConfig(BaseModel):
    """A phase of training.

    kind: what it does; a table `[sft]` is of its own kind. name: what it is called in the run's files; left out, its kind. lr: peak
    learning rate. warmup_steps: steps over which the rate rises to the peak; left out, a twentieth of them, 100 at most, where it falls
    again, and none where it is constant. schedule: "constant", or "cosine" down to zero at the last step. checkpoint_every: steps between
    checkpoints, beside the one after the last. max_minutes: of training, after which the phase ends with a checkpoint. max_tokens: that
    are trained, after which it ends with a checkpoint. lora: adapters of its own, a table with the keys of `[learner.lora]`, or `false` for
    all weights where that table has some; left out, what `[learner]` says (docs/learners.md). min_retention, max_lost: of the skills of
    `[retention]`, what the phase is held to in place of the limits that stand there; left out, it is held to those.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind
    name: str = Field(default="", pattern=r"^([a-z][a-z0-9_]*)?$", description='made of lower-case letters, digits and "_"')
    steps: int = Field(ge=1)
    lr: float | None = Field(gt=0, le=1)
    warmup_steps: int | None = Field(default=None, ge=0)
    schedule: Schedule = "constant"
    checkpoint_every: int = Field(default=200, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, ge=1)
    lora: LoRAConfig | Literal[False] | None = None
    min_retention: float | None = Field(default=None, ge=0, le=1)
    max_lost: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _named(self) -> PhaseConfig:
        if not self.name:  # object.__setattr__: frozen for everyone else
            object.__setattr__(self, "name", self.kind)
        if self.name in NOT_NAMES:
            raise ValueError(f"name {self.name!r} is taken: the run's files call something else so; choose another")
        if self.schedule == "cosine" and self.warmup >= self.steps:
            raise ValueError(f'warmup_steps = {self.warmup} leaves none of {self.steps} steps to schedule = "cosine"; lower it')
        return self

    @property
    def warmup(self) -> int:
        """Steps of warm-up, also where the table leaves them out: a rate that was decayed before is warmed up again, and decayed again
        (Ibrahim et al. 2024, arXiv 2403.08763)."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return 0 if self.schedule == "constant" else min(REWARM_STEPS, math.ceil(self.steps / REWARM), self.steps - 1)

    def adapters(self, shared: LoRAConfig | None) -> LoRAConfig | None:
        """The adapters that it trains, None for all weights. shared: those of the learner's table."""
        return shared if self.lora is None else self.lora or None

    @property
    def updates(self) -> int:
        """Optimizer updates of one step."""
        return 1

    @property
    def best_by(self) -> BestBy | None:
        """What says which step's weights the phase ends with; None where those are the last."""
        return None

    @property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        """Files, folders and URLs that it reads, by the key that names them."""
        return {}

    @property
    def supervised_rows(self) -> SupervisedRows | None:
        """What of it is learned by cross-entropy."""
        return None


PHASE_OWNS = frozenset({"lr", "warmup_steps", "schedule", "total_steps", "min_lr_ratio"})
"""What of an optimizer's settings belongs to a phase."""


def phase_optimizer(shared: OptimizerConfig, phase: PhaseConfig) -> OptimizerConfig:
    """The optimizer of a phase: the shared settings with the phase's rate, warm-up and schedule, which count its updates.

    Raises ValueError when the phase has no rate yet (`rates.with_rate` gives it one).
    """
    if phase.lr is None:
        raise ValueError("rft.lr: the default follows from the model's size, and the model is not here yet; import it, or write a rate")
    own: dict[str, Any] = {"lr": phase.lr, "warmup_steps": phase.warmup * phase.updates, "schedule": phase.schedule}
    if phase.schedule == "cosine":
        own["total_steps"] = phase.steps * phase.updates
    kept = {key: getattr(shared, key) for key in OptimizerConfig.model_fields if key not in PHASE_OWNS}
    return OptimizerConfig(**kept, **own)


NOT_FINITE = "the update was not finite, and is left out"
"""The line of such a step."""


def one_update(
    learner: PolicyLearner, batch: TokenBatch, objective: Objective, step: int | None, may_skip: bool
) -> tuple[Measured, dict[str, float]]:
    """The update of a step that makes one: what was measured of the batch before it, and the row of the step.

    step: its number in the phase, from 0, which decides its learning rate; None for the one after the last. may_skip: whether an update
    that is not finite is left out: then the row has updates_skipped, beside what is finite; it raises FloatingPointError otherwise.

    The row is the means over the batch, tokens (trained), packed_tokens (computed), and what `PolicyLearner.step` gives, with the seconds
    of both.
    """
    measured = learner.forward_backward(batch, objective)
    row = {**measured.means(batch), "tokens": float(batch.tokens), "packed_tokens": float(measured.packed_tokens)}
    try:
        stepped = learner.step(phase_step=step)
    except FloatingPointError:
        learner.discard()
        if not may_skip:
            raise
        return measured, finite(row) | {"updates_skipped": 1.0, "seconds": measured.seconds}
    return measured, {**row, **stepped, "seconds": measured.seconds + stepped["seconds"]}


def may_skip(done: Sequence[Mapping[str, float]]) -> bool:
    """Whether an update may be left out after those steps: the `MAX_SKIPPED` last ones were not all left out already."""
    last = done[-MAX_SKIPPED:]
    return len(last) < MAX_SKIPPED or not all("updates_skipped" in row for row in last)


@dataclass(frozen=True)
class PhaseStep:
    """What one step of a phase did: its number, from 1; what was measured; a line for a person; why the phase ends with it before its last,
    "" when it does not; the episodes it played; what the guards say of it; and what was measured of the tokens of those episodes that it
    trained on."""

    step: int
    metrics: Mapping[str, float]
    line: str
    ends: str = ""
    episodes: Sequence[Episode] = ()
    alarms: Sequence[Alarm] = ()
    measured: PerEpisode = field(default_factory=dict)


class PhaseData(Protocol):
    """What a kind lays out in the run's folder before anything runs, and reads its steps from."""

    @property
    def uses(self) -> tuple[DataUse, ...]:
        """For the manifests of the phase's checkpoints."""
        ...

    def probe(self) -> Sequence[Int32]:
        """A few sequences of tokens to compare engines and learner on."""
        ...

    def ending_lines(self, phase: Phase, steps: int) -> Iterator[str]:
        """What to say of the data after so many steps."""
        ...


@dataclass(frozen=True, slots=True)
class Playing:
    """What a plan knows of episodes. sampled, context: tokens of one, sampled and all of them, at most. turns: at most. tasks: the file
    that they come from, if any."""

    sampled: int
    context: int
    turns: int
    tasks: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What a phase will do: in words; the tokens that it trains and samples; floating-point operations per parameter and trained token;
    episodes; how often engines get new weights; how many examples it has, None where it makes them as it goes; and the tokens of
    demonstrations that it goes over beside its episodes."""

    work: str
    trained_tokens: int
    flops: int = 6
    sampled_tokens: int = 0
    episodes: int = 0
    syncs: int = 0
    examples: int | None = None
    replayed_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Measuring:
    """How a phase is measured in its course: after every so many steps, by a function of the step's number that gives metrics of it."""

    every: int
    measure: Callable[[int], Mapping[str, float]]


@dataclass(frozen=True)
class PhaseParts:
    """What a phase trains with. train: takes one step of the loop, in its frame. done: what was measured in the phase's steps so far, from
    the run's metrics: empty at its beginning, and after a resume as if there had been no break. watch: the guards over reinforcement.
    measuring: of reinforcement on held-out tasks, None where it is not measured in its course."""

    learner: PolicyLearner
    loop: PolicyLoop
    train: Callable[[], Step]
    done: Sequence[Mapping[str, float]] = ()
    watch: Watch | None = None
    measuring: Measuring | None = None


@dataclass(frozen=True)
class PhaseKind:
    """A kind of phase, as the plan, the run and the pages read it.

    table: its part of a recipe. stage: that of a model after it. plan: its work, with what it would read, and a word
    of progress now and then. lay_out: makes its data in a folder, or takes what lies there; it gives None for a table without. steps: those
    after `len(done)`, until its end, one at a time. ending: what to say at its end. critic: of a table.
    """

    kind: Kind
    table: type[PhaseConfig]
    stage: Stage
    plan: Callable[[Any, Making, Playing, Callable[[str], None]], PhaseWork]
    lay_out: Callable[[Any, Making, Path, Callable[[str], None]], PhaseData | None]
    steps: Callable[[PhaseParts, Any, Any], Iterator[PhaseStep]]
    ending: Callable[[PhaseParts, Step | None], Iterator[str]] = lambda parts, did: iter(())


@dataclass
class Spent:
    """Minutes and trained tokens of a phase so far."""

    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count a step, by what was measured of it."""
        self.seconds += metrics.get("step_seconds", metrics.get("seconds", 0.0))
        self.tokens += metrics.get("tokens", metrics.get("learner/tokens", 0.0)) + metrics.get("learner/replay_tokens", 0.0)

    def reached(self, table: PhaseConfig) -> str:
        """The budget of the table that is spent, "" for none."""
        if table.max_tokens is not None and self.tokens >= table.max_tokens:
            return "max_tokens"
        return "max_minutes" if table.max_minutes is not None and self.seconds >= 60 * table.max_minutes else ""
