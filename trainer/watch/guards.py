"""Guards: what a run of policy steps must not come to, looked for after every step, and what is done when it does.

    non_finite   the update of a step was not finite, and was left out
    kl           the policy has moved further from its reference than `kl_max` (only with a KL in the objective)
    entropy      the policy has become nearly certain of every token, or far more random than at the start
    empty        for `EMPTY_STEPS` steps, no group taught anything
    parting      the reward has risen beyond noise, and success has fallen, or has not moved: something else is paid for; or the reward
                 on held-out tasks has not risen with it: it is learned by heart
    drift        turns, tool calls or lengths are others than at the start by a factor, beyond noise, and success has not risen
    repeats      a phrase has come to stand in nearly all answers, or answers repeat themselves, and success has not risen
    constant     the policy says the same whatever the task (`answers.constant`)

Each rule is a function of the steps so far that gives a sentence, or None. "Beyond noise" is `trend.change`; docs/guards.md has the rates
of true and false alarms of those that are meant to find a hacked reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...envs.types import Episode
from .answers import STEPS, Answers, answers_of, constant, spread_phrase
from .trend import Rows, change, change_note, held_out_change, metric_change, reward_change, success_change

Kind = Literal["non_finite", "kl", "entropy", "empty", "parting", "drift", "repeats", "constant"]
Action = Literal["off", "warn", "stop", "roll_back"]
"""What follows an alarm: nothing, as it is not looked for; a line; the end of the run; or the last checkpoint, and
other tasks from there."""

QUIET = 10
"""Steps after an alarm in which the same guard warns no more: once is enough, and what lasts is said again."""
START = 3
"""Steps at the beginning that entropy is compared with."""
EMPTY_STEPS = 2
"""Steps in a row: one without a group to learn from happens by chance."""
MOVED = 0.5
"""Standard deviations, of the reward within the first steps, that it must have risen by before success is asked to follow."""
FLAT = 0.05
"""What success must at least have risen by not to count as flat beside a rising reward."""
RARE = 0.2
"""Share of the episodes of each of the first steps that a phrase may have been in to count as new."""
BOUNDS: Mapping[str, Kind] = {
    "kl_max": "kl", "entropy_low": "entropy", "entropy_high": "entropy", "drift_factor": "drift", "phrase_share": "repeats",
}  # fmt: skip
"""The guard that each bound belongs to."""
DRIFTING = ("episode/turns", "episode/tool_calls", "episode/tokens")


class GuardsConfig(BaseModel):
    """The `[guards]` table: what is done when reinforcement goes wrong. Each guard is "off", "warn" (a line and a row in `alarms.jsonl`),
    "stop" (and the run ends; it can be resumed), or "roll_back" (the run goes on from its last checkpoint, with other tasks).

    non_finite: an update was not finite and was left out; three in a row end the run whatever this says. kl: the mean KL to the reference,
    per token, is above kl_max. entropy: the mean entropy per token is below entropy_low, or above entropy_high, times that of the first
    three steps. empty: two steps in a row without a group that teaches. parting: the reward rose beyond noise and success did not, nor the
    reward on held-out tasks, where `evaluation.every` has them measured.
    drift: turns, tool calls or tokens per episode changed by drift_factor beyond noise, and success did not rise. repeats: a phrase came to
    stand in a share phrase_share of all answers, or that share of an answer repeats itself, and success did not rise. constant: the policy
    says the same whatever the task.
    kl_max: nats per token; needs `rft.objective.kl_coef` above 0. entropy_low: a share of the entropy at the start.
    entropy_high: a multiple of it. drift_factor: how many times more or fewer. phrase_share: a share of the episodes. roll_backs: how often
    a run goes back before it stops.

    Example: `[guards]` with `parting = "stop"`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    non_finite: Literal["off", "warn", "stop"] = "warn"
    kl: Action = "warn"
    entropy: Action = "warn"
    empty: Action = "warn"
    parting: Action = "warn"
    drift: Action = "warn"
    repeats: Action = "warn"
    constant: Action = "warn"
    kl_max: float = Field(default=0.5, gt=0)
    entropy_low: float = Field(default=0.1, ge=0, lt=1)
    entropy_high: float = Field(default=3.0, gt=1)
    drift_factor: float = Field(default=2.0, gt=1)
    phrase_share: float = Field(default=0.8, gt=0.5, le=1)
    roll_backs: int = Field(default=2, ge=1)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A guard that found something. Example: `Alarm("parting", "stop", 30, "reward rose by 0.40 and success fell by 12 points")`."""

    guard: Kind
    action: Action
    step: int
    text: str

    @property
    def line(self) -> str:
        """For a person."""
        return f"step {self.step}: guard {self.guard}: {self.text}"


@dataclass(frozen=True, slots=True)
class PhaseHistory:
    """The steps of a phase so far: their metrics, and what the episodes of the first and last `STEPS` said. like_training: whether
    held-out tasks, where they are measured, are sampled as in training."""

    rows: Rows
    first: Sequence[Answers] = ()
    last: Sequence[Answers] = ()
    like_training: bool = True


def non_finite(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    skipped = seen.rows[-1].get("learner/updates_skipped", 0.0)
    return f"{skipped:.0f} update(s) were not finite and left out" if skipped else None


def kl(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    now = seen.rows[-1].get("learner/reference_kl")
    if now is None or now <= limits.kl_max:
        return None
    return f"KL to the reference is {now:.3g} nats per token, above guards.kl_max = {limits.kl_max:g}"


def entropy(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    values = [row["learner/entropy"] for row in seen.rows if "learner/entropy" in row]
    if len(values) < 2 * START:
        return None
    before, now = fmean(values[:START]), fmean(values[-START:])
    if now < limits.entropy_low * before:
        return f"entropy fell from {before:.3g} to {now:.3g} nats per token: the policy hardly explores any more"
    if now > limits.entropy_high * before:
        return f"entropy rose from {before:.3g} to {now:.3g} nats per token: the policy comes apart"
    return None


def empty(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    last = [row["groups_trained"] for row in seen.rows[-EMPTY_STEPS:]]
    return f"no group taught anything for {EMPTY_STEPS} steps" if len(last) == EMPTY_STEPS and not any(last) else None


def parting(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    """Training reward and what it is meant for: held-out tasks, where steps are measured on them, and the part called success."""
    return _from_held_out(seen) or _from_success(seen)


def _from_held_out(seen: PhaseHistory) -> str | None:
    """A policy that grows sure of itself gains where it is sampled, and not where it is greedy: rewards are compared of one kind only."""
    found = held_out_change(seen.rows)
    if found is None or not found.training.rose:
        return None
    rose = f"since step {found.since}, reward rose by {found.training.difference:.3g} in training, and on {found.tasks} held-out tasks"
    if found.success.fell:
        return f"{rose} success fell by {-100 * found.success.difference:.0f} points"
    if seen.like_training and found.apart:
        return f"{rose} by {found.reward.difference:.2g}: what is learned is of the tasks that it is learned from"
    return None


def _from_success(seen: PhaseHistory) -> str | None:
    reward, success = reward_change(seen.rows), success_change(seen.rows)
    if reward is None or success is None or not reward.rose:
        return None
    if success.fell:
        return f"reward rose by {reward.difference:.3g} and success fell by {-100 * success.difference:.0f} points: {_risen(seen.rows)}"
    spread = fmean([row["reward_std"] for row in seen.rows if "reward_std" in row][:START])
    if success.difference < FLAT and not success.rose and reward.difference > MOVED * spread:
        return f"reward rose by {reward.difference:.3g} and success did not ({100 * success.difference:+.0f} points): {_risen(seen.rows)}"
    return None


def drift(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    if _success_rose(seen.rows):
        return None
    for name in DRIFTING:
        found = metric_change(seen.rows, name)
        if found is None or not found.beyond_noise:
            continue
        low, high = sorted((found.before, found.after))
        if high > limits.drift_factor * max(low, 0.0):
            what = name.partition("/")[2].replace("_", " ")
            return f"{what} per episode went from {found.before:.3g} to {found.after:.3g}, and success has not risen"
    return None


def repeats(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    if not seen.last or len(seen.first) < STEPS or _success_rose(seen.rows):
        return None
    phrase = spread_phrase(seen.first, seen.last[-1], RARE, limits.phrase_share)
    if phrase is not None:
        share = seen.last[-1].phrases[phrase]
        return f"{share:.0%} of the answers have come to say {phrase!r}, and success has not risen"
    before, now = fmean(one.repeated for one in seen.first), fmean(one.repeated for one in seen.last)
    if now >= limits.phrase_share > before:
        return f"{now:.0%} of what an answer says repeats itself, {before:.0%} at the start, and success has not risen"
    return None


def constant_policy(seen: PhaseHistory, limits: GuardsConfig) -> str | None:
    what = constant(seen.last)
    return None if what is None else f"the policy is a constant: it {what}"


RULES: Mapping[Kind, Callable[[PhaseHistory, GuardsConfig], str | None]] = {
    "non_finite": non_finite,
    "kl": kl,
    "entropy": entropy,
    "empty": empty,
    "parting": parting,
    "drift": drift,
    "repeats": repeats,
    "constant": constant_policy,
}


@dataclass
class Watch:
    """The guards over a phase, and what they remember. success: the reward part that is called so. like_training: as `PhaseHistory` has it.

    Example: `Watch(GuardsConfig(), "verdict").after(1, metrics, episodes)` is `[]`.
    """

    limits: GuardsConfig
    success: str
    rows: list[Mapping[str, float]] = field(default_factory=list)
    first: list[Answers] = field(default_factory=list)
    last: list[Answers] = field(default_factory=list)
    warned: dict[str, int] = field(default_factory=dict)
    like_training: bool = True

    def after(self, step: int, metrics: Mapping[str, float], episodes: Sequence[Episode]) -> list[Alarm]:
        """What the guards say of the steps up to this one."""
        self.rows.append(metrics)
        said = answers_of(episodes, self.success)
        if len(self.first) < STEPS:
            self.first.append(said)
        self.last = [*self.last, said][-STEPS:]
        seen, alarms = PhaseHistory(self.rows, self.first, self.last, self.like_training), list[Alarm]()
        for guard, rule in RULES.items():
            action: Action = getattr(self.limits, guard)
            if action == "off" or (action == "warn" and step - self.warned.get(guard, -QUIET) < QUIET):
                continue
            text = rule(seen, self.limits)
            if text is not None:
                self.warned[guard] = step
                alarms.append(Alarm(guard, action, step, text))
        return alarms

    def note(self) -> str:
        """What the line of a step adds: success since the start, and whether the policy has become a constant."""
        notes = [change_note(self.rows), "always says the same" if constant(self.last) else ""]
        return "  ".join(filter(None, notes))

    def row(self) -> dict[str, Any]:
        """What a checkpoint keeps; the rows of metrics are in the run folder."""
        return {"first": [one.row() for one in self.first], "last": [one.row() for one in self.last], "warned": dict(self.warned)}

    def restore(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> None:
        """Go on from a checkpoint. rows: metrics of the steps up to it."""
        self.rows = list(rows)
        self.first, self.last = ([Answers.from_row(one) for one in row[key]] for key in ("first", "last"))
        self.warned = dict(row["warned"])


def _success_rose(rows: Rows) -> bool:
    found = success_change(rows)
    return found is not None and found.rose


def _risen(rows: Rows) -> str:
    """The parts of the reward that have risen beyond noise, the most first."""
    names = sorted({name for row in rows for name in row if name.startswith("reward/")})
    found = {name: change([row.get(name, 0.0) for row in rows if "reward_mean" in row]) for name in names}
    rises = sorted(((one.difference, name) for name, one in found.items() if one is not None and one.rose), reverse=True)
    if not rises:
        return "no single part of it rose beyond noise"
    return "what rose is " + ", ".join(f"{name.partition('/')[2]} ({difference:+.2g})" for difference, name in rises[:3])
