"""Grading again: stored episodes under another reward or rubric, and what training would have made of it.

Rewards have scales of their own, so what is compared is order: the rank correlation over all episodes, each episode's place among them,
and within a group of training whether an attempt stands above or below the mean, which is the sign of its advantage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from ..envs.failures import EpisodeFailure, Failure
from ..rewards.rubric import SECONDS, Judged, Rubric, Scored
from ..rewards.terms import rounding
from ..rewards.types import RewardInput
from ..rollout.store.moments import Moment
from .stored import StoredEpisode

Float64 = NDArray[np.float64]

UNSEEN = ("tokens", "seconds", "judge_seconds")
"""Metrics that are added once an episode was judged, so that no reward sees them, beside those that end with `SECONDS`."""


OVERLONG = "overlong"
"""The part that the objective adds to what the rewards give (`trainer.objectives.shaping`)."""

RubricOf = Callable[[str], Rubric | None]


@dataclass(frozen=True, slots=True)
class Graded:
    """One episode: what it was worth, and what it is worth now, or the failure in the place of that.

    Example: `Graded(episode, 1.0, 0.5).now`.
    """

    episode: StoredEpisode
    was: float
    now: float | None
    failure: str | None = None

    def to_row(self, run: str) -> dict[str, Any]:
        """As plain JSON. page: where the pages of `burnish inspect` show it."""
        moment = asdict(self.episode.moment)
        page = f"/rollouts/{run}/episode?{urlencode({**moment, 'episode': self.episode.id})}"
        row = {**moment, "task": self.episode.task.id, "episode": self.episode.id, "was": self.was, "now": self.now, "page": page}
        return row if self.failure is None else {**row, "failure": self.failure}


@dataclass(frozen=True, slots=True)
class FlippedGroup:
    """A group of training in which an advantage has the other sign now: the attempts, of all that it has, whose own has."""

    moment: Moment
    task: str
    attempts: tuple[Graded, ...]

    @property
    def where(self) -> str:
        """Example: `rft step 12, train-96`."""
        return f"{self.moment.phase} step {self.moment.step}, {self.task}"

    def to_row(self) -> dict[str, Any]:
        attempts = [{"episode": one.episode.id, "was": one.was, "now": one.now} for one in self.attempts]
        return {"phase": self.moment.phase, "step": self.moment.step, "task": self.task, "attempts": attempts}


@dataclass(frozen=True, slots=True)
class RewardSpread:
    """What training sees of a reward: its mean and standard deviation over its episodes, and how many groups differ within and so teach."""

    mean: float
    deviation: float
    teaching: int


@dataclass(frozen=True, slots=True)
class Regrade:
    """What came of it. left_out: reason -> episodes that have nothing to compare. correlation: Spearman's, None where a reward is constant.

    trained: the episodes that training sampled, the only ones that have advantages; was, now and all that is said of groups are of
    these, None and 0 where there are none. groups: those with two compared attempts or more. both_teach: of those, that differ within
    under either reward; flipped: of these, in which an advantage changes its sign, in the order of the episodes. disagreements: the
    episodes whose places among all differ most, the largest first, each with that difference in [0, 1].
    """

    episodes: int
    trained: int
    failed: int
    left_out: dict[str, int]
    correlation: float | None
    groups: int
    both_teach: int
    flipped: tuple[FlippedGroup, ...]
    was: RewardSpread | None
    now: RewardSpread | None
    disagreements: tuple[tuple[Graded, float], ...]

    def to_row(self, run: str) -> dict[str, Any]:
        rows = [{**graded.to_row(run), "apart": apart} for graded, apart in self.disagreements]
        facts = {name: getattr(self, name) for name in ("episodes", "trained", "failed", "left_out", "correlation", "groups", "both_teach")}
        sides = {name: asdict(side) if side else None for name, side in (("was", self.was), ("now", self.now))}
        groups = [group.to_row() for group in self.flipped]
        return {"schema": 1, **facts, "flipped": len(groups), **sides, "flipped_groups": groups, "disagreements": rows}

    def rows(self, graded: Iterable[Graded], run: str) -> Iterator[dict[str, Any]]:
        """Every episode as plain JSON. flipped: whether its advantage has the other sign."""
        flipped = {(group.moment, attempt.episode.id) for group in self.flipped for attempt in group.attempts}
        for one in graded:
            yield {**one.to_row(run), "flipped": (one.episode.moment, one.episode.id) in flipped}


def regrade(episodes: Iterable[StoredEpisode], rubric_of: RubricOf, against: str | None = None) -> tuple[list[Graded], dict[str, int]]:
    """Every episode under the rubric of its environment, and by reason how many were left out: those that failed, those of environments
    without a rubric, and those of groups too small for it.

    rubric_of: by the name of a blended environment, "" for the recipe's own. against: the part that `was` is, instead of the total without
    the objective's penalty for length, which no reward gives. Raises ValueError when no episode has such a part.
    """
    groups: dict[Any, list[StoredEpisode]] = {}
    left_out: dict[str, int] = {}
    parts: set[str] = set()
    for episode in episodes:
        if episode.reward is None:
            left_out["failed"] = left_out.get("failed", 0) + 1
        elif against is not None and against not in episode.parts:
            parts |= episode.parts.keys()
            left_out[f"no part {against}"] = left_out.get(f"no part {against}", 0) + 1
        elif rubric_of(episode.task.environment) is None:
            reason = f"of environment {episode.task.environment or 'of its own'}, which the recipe does not blend"
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            groups.setdefault((episode.moment, episode.task.id), []).append(episode)
    if against is not None and not groups:
        raise ValueError(f"--against {against}: no episode has this part; there are {', '.join(sorted(parts)) or 'none'}")
    kept = list[tuple[Rubric, list[StoredEpisode]]]()
    for group in groups.values():
        rubric = rubric_of(group[0].task.environment)
        assert rubric is not None
        if len(group) >= rubric.min_members:
            kept.append((rubric, group))
        else:
            left_out["too few attempts to compare"] = left_out.get("too few attempts to compare", 0) + len(group)
    return asyncio.run(_all(kept, against)), left_out


def compared(graded: Sequence[Graded], left_out: dict[str, int], most: int = 20) -> Regrade:
    """What the two rewards say of the same episodes. most: how many disagreements to name."""
    both = [one for one in graded if one.now is not None]
    was, now = np.array([one.was for one in both], np.float64), np.array([one.now for one in both], np.float64)
    apart = np.abs(ranks(was) - ranks(now)) / max(1, len(both) - 1)
    order = spearman(was, now)
    # where one side is constant, all share one place there, and how far from it another's is says nothing
    first = [i for i in np.argsort(-apart, kind="stable")[:most] if apart[i] > 0] if order is not None else []
    trained = [i for i, one in enumerate(both) if of_training(one.episode.moment)]
    groups: dict[tuple[Moment, str], list[int]] = {}
    for i in trained:
        groups.setdefault((both[i].episode.moment, both[i].episode.task.id), []).append(i)
    signs = {key: (_signs(was[members]), _signs(now[members])) for key, members in groups.items() if len(members) > 1}
    teach = [key for key, (before, after) in signs.items() if before.any() and after.any()]
    turned = {key: np.flatnonzero(signs[key][0] * signs[key][1] < 0) for key in teach}
    return Regrade(
        episodes=len(both),
        trained=len(trained),
        failed=len(graded) - len(both),
        left_out=left_out,
        correlation=order,
        groups=len(signs),
        both_teach=len(teach),
        flipped=tuple(FlippedGroup(*key, tuple(both[groups[key][i]] for i in at)) for key, at in turned.items() if len(at)),
        was=_seen(was[trained], [before for before, _ in signs.values()]),
        now=_seen(now[trained], [after for _, after in signs.values()]),
        disagreements=tuple((both[i], float(apart[i])) for i in first),
    )


def of_training(moment: Moment) -> bool:
    """Whether the episodes of a moment had advantages: evaluations, and what was played before the first phase, had none."""
    return (moment.split, moment.mode) == ("train", "sampled") and moment.phase != "base"


def ranks(values: Float64) -> Float64:
    """The place of each value, from 1; equal values share the mean of theirs. Example: `[3, 1, 3]` is `[2.5, 1, 2.5]`."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)


def spearman(one: Float64, other: Float64) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side is constant."""
    a, b = ranks(one) - (len(one) + 1) / 2, ranks(other) - (len(other) + 1) / 2
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else None


def reward_input(episode: StoredEpisode) -> RewardInput:
    """What a reward saw of the episode when it was played."""
    metrics = {name: value for name, value in episode.metrics.items() if name not in UNSEEN and not name.endswith(SECONDS)}
    data = {**episode.task.data, **episode.env_data}
    return RewardInput(
        episode.id, episode.task, episode.messages, episode.env_reward, episode.env_parts, metrics, data, episode.truncation
    )  # fmt: skip


async def _all(groups: Sequence[tuple[Rubric, Sequence[StoredEpisode]]], against: str | None) -> list[Graded]:
    async with asyncio.TaskGroup() as running:
        tasks = [running.create_task(_group(group, rubric, against)) for rubric, group in groups]
    return [graded for task in tasks for graded in task.result()]


async def _group(group: Sequence[StoredEpisode], rubric: Rubric, against: str | None) -> list[Graded]:
    judged = await asyncio.gather(*(_judged(episode, rubric) for episode in group))
    members = [one for one in judged if isinstance(one, Judged)]
    enough = len(members) >= rubric.min_members  # a comparison of fewer adds no part, and its total would mean something else
    scored = iter(await rubric.score_group(members) if enough else [])
    out = []
    for episode, one in zip(group, judged, strict=True):
        assert episode.reward is not None
        was = episode.parts[against] if against is not None else episode.reward - episode.parts.get(OVERLONG, 0.0)
        result = one if isinstance(one, Failure) else next(scored, None)
        if isinstance(result, Scored):
            out.append(Graded(episode, was, result.reward.total))
        else:
            out.append(Graded(episode, was, None, "too few attempts were judged to compare" if result is None else str(result)))
    return out


async def _judged(episode: StoredEpisode, rubric: Rubric) -> Judged | Failure:
    try:
        return await rubric.judge(reward_input(episode))
    except EpisodeFailure as error:
        return error.failure


def _signs(rewards: Float64) -> Float64:
    """Of a group, above or below the mean, as far as its totals tell: what is within rounding of it is at it, and so are all of a group
    that differs by no more, which training drops (`trainer.schedule.groups.why_not`)."""
    near, deviations = rounding(rewards.tolist()), rewards - rewards.mean()
    if np.ptp(rewards) <= near:
        return np.zeros(len(rewards))
    return np.where(np.abs(deviations) <= near, 0.0, np.sign(deviations))


def _seen(values: Float64, signs: Sequence[Float64]) -> RewardSpread | None:
    if not len(values):
        return None
    return RewardSpread(float(values.mean()), float(values.std()), sum(bool(one.any()) for one in signs))
