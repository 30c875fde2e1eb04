"""Reinforcement fine-tuning: groups of episodes under the current policy, compared with each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...envs.registry import ID_PATTERN
from ...rollout.busy import shares, what_to_scale
from ...rollout.store.held_out import REWARD, SUCCESS
from ...rollout.store.moments import PerEpisode
from ..data.blend import Blend, share_of, shares_beside
from ..data.config import OWN, Making, RowsConfig, SupervisedRows
from ..data.prepared import lay_out
from ..demonstrations import Demonstrations, ExampleStream
from ..learner.config import CriticConfig
from ..loop import MAX_IDLE_STEPS, Step
from ..models.best import BestBy
from ..objectives.config import ObjectiveConfig
from ..objectives.measures import per_trajectory
from ..objectives.presets import CLIPS, PRESETS, Algorithm, bounds_act, plain_name, written_out
from ..schedule.admission import Rollouts
from .common import PhaseConfig, PhaseData, PhaseKind, PhaseParts, PhaseStep, PhaseWork, Playing, Spent
from .examples import examples_of

MAX_STALENESS = 2
"""Of tokens that are trained on, in moves of the weights, unless the recipe says otherwise."""
CRITIC_CLIP = 0.2
"""How far a critic's estimate moves within a step before its gradient ends, unless the recipe says otherwise."""
ROUNDING = 0.01
"""Within this of 1 is every ratio of learner and engine for equal weights in float32, which differ by some 1e-4 (docs/design.md)."""


class BlendedConfig(BaseModel):
    """Another environment, whose tasks are blended with the recipe's own (docs/blend-data.md).

    environment: its id alone; one of your own is registered by a file in `plugins`. environment_args: what it is made with. percent: its
    share of all tasks; the recipe's own environment has what is left. name: what metrics and tasks call it; left out, the last part of its
    id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    environment: str = Field(
        pattern=ID_PATTERN.pattern,
        description='an id of `burnish env list`, as "burnish/Arithmetic-v0"; of your own, give the id alone, and plugins = ["sums.py"]',
    )
    environment_args: dict[str, Any] = {}
    percent: float = Field(ge=0, le=100)
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")

    @property
    def called(self) -> str:
        """Its name among the sources of the blend."""
        return self.name or self.environment.rpartition("/")[2]


class ReplayConfig(RowsConfig):
    """The `[rft.replay]` table: demonstrations that every update learns from beside its episodes, by cross-entropy (docs/algorithms.md).

    data: rows `{"messages": […]}` as those of `[sft]`, in a file, a folder of files or behind a URL. weight: of their mean negative
    log-likelihood beside the policy loss. share: of all sequences that are learned from, those of episodes and of demonstrations.

    Example: `[rft.replay]` with `data = "demos.jsonl"`, `weight = 0.1`, `share = 0.25`.
    """

    weight: float = Field(default=0.1, gt=0)
    share: float = Field(default=0.2, gt=0, lt=1)

    @property
    def exact_share(self) -> Fraction:
        return share_of(self.share)


class RFTPhaseConfig(PhaseConfig):
    """The `[rft]` table: reinforcement fine-tuning on groups of episodes that are compared with each other.

    algorithm: a name that stands for values of this table and of `objective`; left out, each stands for itself.
    steps: policy steps. groups_per_step: tasks per step. group_size: episodes per task, whose rewards are compared with each other.
    minibatches: parts that a step's groups are split into, each of which makes an optimizer update. epochs: how many times over. Ratios
    compare with the policy at the start of the step, or, with one of each, with what the engine sampled with.
    lr: peak learning rate; left out, it follows from the size of the model, and is ten times as high for adapters (docs/algorithms.md).
    rollouts: what engines do while the learner learns. "sync": they wait for the new weights; "one_step_off": they play the tasks of the
    next step; "async": they play on, for several steps to come, and take new weights in the middle of episodes (docs/schedules.md).
    max_staleness: with "async", how many updated policies ago a token may have been sampled that is trained on; left out, 2.
    max_refills: further rounds of tasks a step may sample in place of groups that are dropped. equal_groups: whether
    groups whose episodes all got the same reward are dropped ("drop"), since advantages within a group are zero there, or trained on
    ("keep"). objective: advantage and loss.
    replay: demonstrations that are learned from beside the episodes; left out, none.
    critic: a model of what episodes earn, which the advantage "gae" and those of one's own may ask (`GroupBatch.values`); left out, none.
    keep_best: whether the phase ends with the weights of its highest success on held-out tasks, measured every `evaluation.every` steps,
    and not with the last ones.
    """

    kind: Literal["rft"] = "rft"
    algorithm: Algorithm | None = None
    steps: int = Field(default=100, ge=1)
    groups_per_step: int = Field(default=16, ge=1)
    group_size: int = 8
    minibatches: int = Field(default=1, ge=1)
    epochs: int = Field(default=1, ge=1)
    lr: float | None = Field(default=None, gt=0, le=1)
    rollouts: Rollouts = "sync"
    max_staleness: int | None = Field(default=None, ge=1, le=64)
    max_refills: int = Field(default=2, ge=0)
    equal_groups: Literal["drop", "keep"] = "drop"
    checkpoint_every: int = Field(default=20, ge=1)
    objective: ObjectiveConfig = ObjectiveConfig()
    critic: CriticConfig | None = None
    keep_best: bool = False
    blend: tuple[BlendedConfig, ...] = ()
    replay: ReplayConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, data: Any) -> Any:
        return written_out(data) if isinstance(data, dict) else data

    @field_validator("group_size")
    @classmethod
    def _comparable(cls, value: int) -> int:
        if value < 2:
            raise ValueError(f"must be at least 2, not {value}: the episodes of one task are compared with each other")
        return value

    @field_validator("blend", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("blend")
    @classmethod
    def _blendable(cls, value: tuple[BlendedConfig, ...]) -> tuple[BlendedConfig, ...]:
        _shares(value)
        return value

    @model_validator(mode="after")
    def _effective(self) -> RFTPhaseConfig:
        if self.rollouts == "async" and self.max_staleness is None:
            object.__setattr__(self, "max_staleness", MAX_STALENESS)  # frozen for everyone else
        if self.rollouts != "async" and self.max_staleness is not None:
            raise ValueError(f'max_staleness has no effect with rollouts = "{self.rollouts}"; remove it, or write rollouts = "async"')
        if self.staleness and self.updates > 1 and self.objective.correction == "none":
            raise ValueError(
                f'objective.correction = "none" with rollouts = "{self.rollouts}" and {self.updates} updates a step leaves out that older '
                'policies sampled the tokens; write "truncate", "mask" or "sequence_mask", or one update a step'
            )
        if self.minibatches > self.groups_per_step:
            raise ValueError(f"minibatches = {self.minibatches} is more than groups_per_step = {self.groups_per_step}; lower it")
        k = self.objective.advantage_args.get("k")
        if plain_name(self.objective.advantage) == "pass_at_k" and isinstance(k, int) and not 2 <= k <= self.group_size:
            raise ValueError(f"objective.advantage_args.k: must be from 2 to group_size = {self.group_size}, not {k}")
        self._check_critic()
        self._check_bounds()
        if plain_name(self.objective.loss) == "dpo":
            raise ValueError('objective.loss = "dpo" is of pairs, not of groups that are played; use a phase of kind "dpo"')
        return self

    def _check_bounds(self) -> None:
        bounds = CLIPS.get(plain_name(self.objective.loss), ())
        idle = [name for name in bounds if name in self.objective.loss_args]
        if idle and not bounds_act(self.updates, self.objective.correction or "none"):
            raise ValueError(
                f"objective.loss_args.{idle[0]} has no effect with one update a step and a correction: the ratio that it bounds is 1; "
                'raise minibatches or epochs, or write objective.correction = "none"'
            )
        low = self.objective.loss_args.get("clip_low")
        if "clip_low" in idle and isinstance(low, int | float) and low > 1:
            raise ValueError(
                f"objective.loss_args.clip_low = {low:g} bounds no more than 1 does, since no ratio is below 0; write 1, or less"
            )

    def _check_critic(self) -> None:
        advantage = plain_name(self.objective.advantage)
        if advantage == "gae" and self.critic is None:
            raise ValueError('objective.advantage = "gae" needs a critic: write algorithm = "ppo", or add a table [rft.critic]')
        if self.critic is not None and advantage != "gae" and advantage.isidentifier():  # burnish's own
            raise ValueError(f'critic has no effect with objective.advantage = "{advantage}"; remove the table, or use "gae"')
        if self.critic is not None and self.critic.clip is not None and self.updates == 1:
            raise ValueError(
                "critic.clip has no effect with one update a step, which finds every estimate where the step began; remove it, or raise "
                "minibatches or epochs"
            )
        if self.critic is not None and self.critic.clip is None and self.updates > 1:
            object.__setattr__(self, "critic", self.critic.model_copy(update={"clip": CRITIC_CLIP}))  # frozen for everyone else
        if self.critic is not None and self.critic.warmup_updates:
            alone, every = self.critic.warmup_updates, self.steps * self.updates
            warm = self.warmup * self.updates if self.schedule == "cosine" else 0
            if alone + warm >= every:
                what = f"{alone} and a warm-up of {warm} more leave" if warm else f"{alone} leaves"
                raise ValueError(f"critic.warmup_updates = {what} the policy none of the phase's {every} updates; lower it")

    @property
    def updates(self) -> int:
        """Optimizer updates of one step."""
        return self.minibatches * self.epochs

    def idle_bounds(self, exact: bool) -> dict[str, float]:
        """The bounds of the ratio that stand here and cannot act. exact: whether engine and learner both compute in float32.

        With one update by the tokens of the weights that are trained, the ratio is 1 but for rounding; and it is never below 0.
        """
        names = CLIPS.get(plain_name(self.objective.loss), ())
        given = {name: value for name in names if isinstance(value := self.objective.loss_args.get(name), int | float)}
        rounded = exact and self.updates == 1 and self.staleness == 0
        return {name: value for name, value in given.items() if (rounded and value >= ROUNDING) or (name == "clip_low" and value >= 1)}

    def own_bounds(self) -> dict[str, float]:
        """Those that the algorithm's name stands for, whatever the recipe sets."""
        return {} if self.algorithm is None else {**PRESETS[self.algorithm].clips}

    @property
    def staleness(self) -> int:
        """How often the weights may have moved since a token was sampled that is trained on."""
        return {"sync": 0, "one_step_off": 1, "async": self.max_staleness or MAX_STALENESS}[self.rollouts]

    @property
    def best_by(self) -> BestBy | None:
        return BestBy((SUCCESS, REWARD), "its tasks that are held out", highest=True) if self.keep_best else None

    @property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        return {} if self.replay is None else {f"replay.{key}": places for key, places in self.replay.own_rows.items()}

    @property
    def supervised_rows(self) -> SupervisedRows | None:
        """Those of `replay`, about as many as the phase will see."""
        if self.replay is None:
            return None
        sequences = self.steps * self.epochs * self.groups_per_step * self.group_size
        seen = max(1, math.ceil(sequences * self.replay.exact_share / (1 - self.replay.exact_share)))
        return SupervisedRows(f"{self.name}.replay", "sft", self.replay, batch=math.ceil(seen / self.steps), samples=seen)

    @property
    def task_blend(self) -> Blend | None:
        """How the tasks of several environments follow each other, None where there is one."""
        return Blend(_shares(self.blend)) if self.blend else None

    @property
    def blended(self) -> tuple[str, ...]:
        """Names of the environments whose tasks are blended with the recipe's own."""
        return tuple(one.called for one in self.blend)


def _shares(blended: Sequence[BlendedConfig]) -> dict[str, Fraction]:
    return shares_beside(OWN, [(one.called, one.percent) for one in blended], "environments")


def lay_out_replay(table: RFTPhaseConfig, making: Making, folder: Path, say: Callable[[str], None]) -> PhaseData | None:
    """The demonstrations of the phase in `folder`, None for a table without them."""
    rows = table.supervised_rows
    return None if rows is None else lay_out(rows, making, folder, say)


def demonstrations_of(table: RFTPhaseConfig, data: PhaseData | None) -> Demonstrations | None:
    """What is learned beside the episodes of the phase, from where `lay_out_replay` laid it out."""
    if table.replay is None:
        return None
    assert data is not None, "the demonstrations of a phase are laid out before it begins"
    return Demonstrations(cast(ExampleStream, data), table.replay.weight, table.replay.exact_share)


def rft_steps(parts: PhaseParts, table: RFTPhaseConfig, data: PhaseData | None = None) -> Iterator[PhaseStep]:
    """The steps that are left of the phase, one at a time, until its last or until nothing is left to learn. That with which a budget is
    spent is measured as the last one is: the phase ends there."""
    watch, spent = parts.watch, Spent()
    assert watch is not None, "reinforcement is watched by guards"
    for row in parts.done:
        spent.add(row)
    for step in range(len(parts.done), table.steps):
        did = parts.train()
        spent.add(did.metrics)
        ends = "nothing left to learn" if parts.loop.exhausted else ""
        last = bool(ends or step + 1 == table.steps or spent.reached(table))  # whoever takes the steps takes no other then
        metrics = {**did.metrics, **_measured(parts, step + 1, last)}
        alarms = watch.after(step + 1, metrics, did.collected.episodes)
        line = "  ".join(filter(None, [_line(metrics, table.groups_per_step), watch.note()]))
        yield PhaseStep(step + 1, metrics, line, ends, did.collected.episodes, alarms, measured_of(did))


def _measured(parts: PhaseParts, step: int, last: bool) -> Mapping[str, float]:
    """What held-out tasks say after a step, where it is one after which they are asked."""
    if parts.measuring is None or not (last or step % parts.measuring.every == 0):
        return {}
    if last:
        parts.loop.end_phase()  # what is under way is nobody's any more
    return parts.measuring.measure(step)


def measured_of(step: Step) -> PerEpisode:
    """What was measured of the episodes that a step trained on: by the episode's id, of each of its trajectories."""
    if step.batch is None or step.measured is None:
        return {}
    rows = iter(per_trajectory(step.batch, step.measured))
    trained = [episode for group in step.collected.groups for episode in group.rewarded]
    return {episode.id: [next(rows) for _ in episode.trajectories] for episode in trained}


def rft_plan(table: RFTPhaseConfig, making: Making, playing: Playing, say: Callable[[str], None]) -> PhaseWork:
    """What the phase will do, by what an episode may take."""
    episodes = table.steps * table.groups_per_step * table.group_size
    size = f"{table.steps} steps x {table.groups_per_step} tasks x {table.group_size} episodes"
    turns = f"up to {playing.turns} turns" if playing.turns > 1 else "1 turn"
    work = f"{size} of {turns}, lr {table.lr:g}" + (f", from {playing.tasks}" if playing.tasks else "")
    beside, rows = 0, table.supervised_rows
    if rows is not None and table.replay is not None:
        found = examples_of(rows, making, say)
        beside = round(rows.samples * found.mean_tokens)
        work += (
            f", beside {rows.samples:,} demonstrations of about {found.mean_tokens:.0f} tokens ({table.replay.share:.0%} of what is "
            f"learned from, weight {table.replay.weight:g}), {found.line}"
        )
    return PhaseWork(
        work, episodes * playing.context, flops(table), episodes * playing.sampled, episodes, table.steps, replayed_tokens=beside
    )


def flops(table: RFTPhaseConfig) -> int:
    """Of a parameter and token: 2 forward and 4 backward in each epoch, 2 for the log-probabilities that prove the sync, and 2 for each
    policy that scores it beside that: the old one of several updates, or asked for together with a critic's values, and the reference of a
    KL. The critic is of the policy's size: 6 in each epoch too, and 2 for those values."""
    critic = table.critic is not None
    policy = 6 * table.epochs + 2 + 2 * (table.updates > 1 or critic) + 2 * (table.objective.kl_coef > 0)
    return policy + (6 * table.epochs + 2) * critic


def ending_lines(parts: PhaseParts, did: Step | None) -> Iterator[str]:
    """What to say at the end of the phase: why it ended early, if it did, and what was proved of the weight syncs."""
    loop = parts.loop
    if (shown := loop.updates.demonstrations) is not None:
        sequences = loop.progress.sequences
        learned, said = shown.learned(sequences), f"{loop.settings.phase.name} replay"
        had = learned / max(1, learned + sequences)
        yield f"{said}: {learned:,} demonstrations beside {sequences:,} sequences, {had:.2%} ({float(shown.share):.2%} asked for)"
        yield from shown.stream.blend_lines(said, learned)
    if loop.exhausted and did is not None:
        why = ", ".join(f"{count} {reason}" for reason, count in did.collected.dropped.items())
        reward = did.metrics.get("reward_mean", float("nan"))
        yield (
            f"training ended early: for {MAX_IDLE_STEPS} steps no group taught anything ({why} in the last, mean reward {reward:.2f}). "
            "The task is solved, out of reach, or the policy has become a constant: see the last rollouts"
        )
    spent = what_to_scale(loop.account.total, loop.settings.phase.rollouts)
    if spent is not None:
        yield spent
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
        parts.append(f"success {metrics['success']:.0%} (n = {metrics['rewarded']:.0f})")
    if "learner/entropy" in metrics:
        parts.append(f"entropy {metrics['learner/entropy']:.3f}")
    parts.append(f"{metrics['episodes_per_second']:.0f} episodes/s")
    parts.append(f"{metrics['groups_trained']:.0f}/{groups} groups")
    busy = shares(metrics)
    if busy:
        parts.append("busy " + " ".join(f"{name} {busy[name]:.0%}" for name in ("engine", "learner")))
    if metrics["failed"]:
        parts.append(f"{metrics['failed']:.0f} failed")
    return "  ".join(parts)


RFT = PhaseKind("rft", RFTPhaseConfig, "rft", rft_plan, lay_out_replay, rft_steps, ending_lines)
