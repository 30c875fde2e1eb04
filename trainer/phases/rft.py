"""Reinforcement fine-tuning: groups of episodes under the current policy, compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..loop import MAX_IDLE_STEPS, PolicyLoop, Step
from ..objectives.config import ObjectiveConfig
from .common import PhaseStep, Schedule


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


def rft_steps(loop: PolicyLoop, train: Callable[[], Step], table: RFTPhaseConfig, first: int = 0) -> Iterator[PhaseStep]:
    """The phase from step `first` (0 is its beginning) until its end, or until nothing is left to learn, a step at a time.

    train: takes one step of the loop, `loop.step` or a frame around it.
    """
    for step in range(first, table.steps):
        did = train()
        last = step + 1 == table.steps or loop.exhausted
        yield PhaseStep(step + 1, did.metrics, _line(did.metrics, table.groups_per_step), last, did.collected.episodes)
        if last:
            return


def ending_lines(loop: PolicyLoop, did: Step | None) -> Iterator[str]:
    """What to say at the end of the phase: why it ended early, if it did, and what was proved of the weight syncs."""
    if loop.exhausted and did is not None:
        why = ", ".join(f"{count} {reason}" for reason, count in did.collected.dropped.items())
        reward = did.metrics.get("reward_mean", float("nan"))
        yield (
            f"training ended early: for {MAX_IDLE_STEPS} steps no group taught anything ({why} in the last, mean reward {reward:.2f}). "
            "The task is solved, out of reach, or the policy has become a constant: see the last rollouts"
        )
    if not loop.proofs:
        yield "no step trained, so no sync was proved"
        return
    mean, quantile = max(proof.mean for proof in loop.proofs), max(proof.quantile for proof in loop.proofs)
    yield (
        f"sync proof held at all {len(loop.proofs)} weight syncs; log-probabilities of the probe differed by {mean:.1e} on average, "
        f"{quantile:.1e} at the 90 % quantile, at most"
    )


def _line(metrics: Mapping[str, float], groups: int) -> str:
    parts = [f"reward {metrics.get('reward_mean', float('nan')):.2f}"]
    if "success" in metrics:
        parts.append(f"success {metrics['success']:.0%}")
    if "learner/entropy" in metrics:
        parts.append(f"entropy {metrics['learner/entropy']:.3f}")
    parts.append(f"{metrics['episodes_per_second']:.0f} episodes/s")
    parts.append(f"{metrics['groups_trained']:.0f}/{groups} groups")
    if metrics["failed"]:
        parts.append(f"{metrics['failed']:.0f} failed")
    return "  ".join(parts)
