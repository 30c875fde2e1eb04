"""The stored episodes of a run as objects: what was asked, said and earned, without the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..envs.types import Message, Task, message_from_dict
from ..rewards.rubric import SECONDS
from ..rollout.store.moments import Moment, moments
from ..rollout.store.reading import episode_columns, rows_while_there, stored_value
from .kept import kept_of
from .runs import check_run

COLUMNS = (
    "episode", "task", "seed", "sample", "environment", "prompt", "task_data", "env_data", "messages", "turns", "env_rewards",
    "reward", "parts", "metrics", "labels", "truncation", "failure",
)  # fmt: skip
OWN_METRICS = ("turns", "tokens", "seconds", "judge_seconds")
"""Metrics that the rollout adds to what the environment measures, beside those that end with `SECONDS`."""


def is_own_metric(name: str) -> bool:
    """Whether the rollout measures it, rather than the environment."""
    return name in OWN_METRICS or name.endswith(SECONDS)


@dataclass(frozen=True, slots=True)
class StoredEpisode:
    """One episode as it lies in the store, without its tokens.

    turns: how often the policy spoke. env_rewards: what the environment gave in its answer to each. env_data: what it put into
    `info["data"]`. reward: the total, None when the episode failed, and then failure is the kind. parts: unweighted.

    Example: `next(chosen(run, Which())).moment.phase`.
    """

    moment: Moment
    id: str
    sample: int
    task: Task
    messages: tuple[Message, ...]
    turns: int
    env_rewards: tuple[float, ...]
    env_data: Mapping[str, Any]
    reward: float | None
    parts: Mapping[str, float]
    metrics: Mapping[str, float]
    labels: Mapping[str, str]
    truncation: str | None
    failure: str | None

    @property
    def env_reward(self) -> float:
        """The sum of the environment's rewards."""
        return self.parts.get("env", 0.0)

    @property
    def env_parts(self) -> dict[str, float]:
        """What the environment said that sum is made of."""
        return {name.removeprefix("env."): value for name, value in self.parts.items() if name.startswith("env.")}

    @property
    def where(self) -> str:
        """Where in the run it is. Example: `rft step 12, train-96/0`."""
        of = self.moment
        kind = "" if of.split == "train" else f" held out, {of.mode}"
        return f"{of.phase} step {of.step}{kind}, {self.id}"


@dataclass(frozen=True, slots=True)
class Which:
    """Some of a run's episodes: those that fit all that is given. Example: `Which(phase="rft", step=12)`."""

    phase: str | None = None
    step: int | None = None
    split: str | None = None
    mode: str | None = None
    episode: str | None = None

    def fits(self, moment: Moment) -> bool:
        pairs = ((self.phase, moment.phase), (self.step, moment.step), (self.split, moment.split), (self.mode, moment.mode))
        return all(want is None or want == have for want, have in pairs)


def stored_episodes(folder: Path, which: Which) -> Iterator[StoredEpisode]:
    """Those of the episodes in a store, step by step. A file that goes meanwhile is passed over.

    Raises ValueError naming the file that cannot be read, or that an earlier burnish wrote, without what task and environment knew.
    """
    for file, moment in sorted(moments(folder), key=lambda one: (one[1].phase, one[1].step, one[1].split)):
        if which.fits(moment):
            yield from _read(file, moment, which.episode)


def chosen(run: Path, which: Which) -> Iterator[StoredEpisode]:
    """Those of a run's episodes. Raises ValueError, saying what there is, when there is none."""
    folder, found = check_run(run) / "episodes", False
    for episode in stored_episodes(folder, which):
        found = True
        yield episode
    if not found:
        last = {moment.phase: moment.step for _, moment in moments(folder)}  # in the order of their names, so of their steps
        there = ", ".join(f"{phase} up to step {step}" for phase, step in last.items()) or "none at all"
        named = f"no episode {which.episode!r} like that" if which.episode else "no such episodes"
        why = kept_of(check_run(run)).why_none(which.phase, which.step, which.split, by_id=which.episode is not None)
        raise ValueError(f"{run} has {named}; stored are {there}{f'; {why}' if why else ''}")


def _read(file: Path, moment: Moment, episode: str | None) -> Iterator[StoredEpisode]:
    for row in rows_while_there(file, episode_columns(*COLUMNS)):
        if episode is None or row["episode"] == episode:
            try:
                yield episode_of(row, moment, stored_value(row["messages"]))
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{file}: cannot be read as stored episodes: episode {row['episode']!r}: {error}") from error


def _object(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, not {type(value).__name__}")
    return value


def episode_of(row: Mapping[str, Any], moment: Moment, said: Sequence[Any]) -> StoredEpisode:
    """The episode of a row that has the columns of `COLUMNS`, its messages read.

    Raises AttributeError, KeyError, TypeError, ValueError or RecursionError when the row is not one.
    """
    messages = tuple(message_from_dict(message, f"message {i}") for i, message in enumerate(said))
    prompt, data = messages[: row["prompt"]], _object(stored_value(row["task_data"]), "task_data")
    return StoredEpisode(
        moment=moment,
        id=row["episode"],
        sample=row["sample"],
        task=Task(row["task"], row["seed"], prompt, data, row["environment"]),
        messages=messages,
        turns=len(row["turns"] or ()),
        env_rewards=tuple(row["env_rewards"] or ()),
        env_data=_object(stored_value(row["env_data"]), "env_data"),
        reward=row["reward"],
        parts=_object(row["parts"] or {}, "parts"),
        metrics=_object(row["metrics"] or {}, "metrics"),
        labels=_object(row["labels"] or {}, "labels"),
        truncation=row["truncation"],
        failure=row["failure"],
    )
