"""What a policy step sampled, and what that amounts to in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...envs.failures import Failure
from ...envs.types import Episode, EpisodeGroup
from ..data.config import OWN


@dataclass(frozen=True)
class Collected:
    """Groups to train on, in the order of their tasks, everything that was sampled for them, and why groups were left out."""

    groups: tuple[EpisodeGroup, ...]
    sampled: tuple[EpisodeGroup, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def episodes(self) -> list[Episode]:
        return [episode for group in self.sampled for episode in group.episodes]


def rollout_metrics(collected: Collected, groups_per_step: int, success: str, blended: Sequence[str] = ()) -> dict[str, float]:
    """What a step's episodes amount to: means over all rewarded episodes sampled in the recipe's own environment, trained on or not.

    blended: names of the environments that are blended with it. Of each of them and of "own", `blend/NAME` is the share of the groups
    sampled, `blend_trained/NAME` of those trained on, 0 in a step that has none of it, `blend_tokens/NAME` the tokens that were trained of
    these, and `blend_reward/NAME` the mean reward.

    An episode that lacks a part which others have has 0 of it, as in an evaluation (`evaluation.statistics.summarize`); success, too.
    `rewarded` is the number of episodes that those means are over; `episodes` and `failed` count all. `failed/KIND` counts the failures of
    a kind.
    """
    rewarded = [episode for episode in collected.episodes if episode.reward is not None]
    failures = Counter(str(episode.outcome.kind) for episode in collected.episodes if isinstance(episode.outcome, Failure))
    metrics: dict[str, float] = {
        "episodes": float(len(collected.episodes)),
        "failed": float(len(collected.episodes) - len(rewarded)),
        "groups_trained": float(len(collected.groups)),
        "groups_sampled": float(len(collected.sampled)),
        "rounds": float(-(-len(collected.sampled) // groups_per_step)),
        **{f"dropped/{reason}": float(count) for reason, count in sorted(collected.dropped.items())},
        **{f"failed/{kind}": float(count) for kind, count in sorted(failures.items())},
    }
    metrics |= _blended(collected, blended)
    rewarded = [episode for episode in rewarded if not episode.task.environment]
    if not rewarded:
        return metrics
    totals = np.array([episode.reward.total for episode in rewarded if episode.reward is not None])
    metrics["rewarded"] = float(len(rewarded))
    metrics |= {"reward_mean": float(totals.mean()), "reward_std": float(totals.std())}
    rows = [episode.reward.parts for episode in rewarded if episode.reward is not None]
    parts = {name: float(np.mean([row.get(name, 0.0) for row in rows])) for name in sorted({name for row in rows for name in row})}
    metrics |= {f"reward/{name}": value for name, value in parts.items()}
    metrics["success"] = parts.get(success, 0.0)
    metrics |= {f"episode/{name}": value for name, value in _means([episode.metrics for episode in rewarded]).items()}
    metrics["truncated"] = float(np.mean([episode.truncation is not None for episode in rewarded]))
    known = {episode.labels["expected"] for episode in rewarded if "expected" in episode.labels}
    said = [episode.labels["predicted"] for episode in rewarded if "predicted" in episode.labels]
    predicted = [label if label in known else "other" for label in said]  # what a policy makes up names no metric
    metrics |= {f"predicted/{label}": predicted.count(label) / len(predicted) for label in sorted(set(predicted))}
    turns = [turn for episode in rewarded for turn in episode.turns]
    metrics["generate_seconds"] = float(np.mean([turn.generate_s for turn in turns])) if turns else 0.0
    metrics["env_seconds"] = float(np.mean([turn.env_s for turn in turns])) if turns else 0.0
    return metrics


def _blended(collected: Collected, blended: Sequence[str]) -> dict[str, float]:
    """Of each environment that plays tasks beside the recipe's own, and of that as "own"."""
    names = sorted(blended)
    metrics: dict[str, float] = {}
    for name in [*names, *([""] if names else [])]:
        sampled, trained = (
            [group for group in groups if group.task.environment == name] for groups in (collected.sampled, collected.groups)
        )
        totals = [episode.reward.total for group in sampled for episode in group.episodes if episode.reward is not None]
        metrics[f"blend/{name or OWN}"] = len(sampled) / max(1, len(collected.sampled))
        metrics[f"blend_trained/{name or OWN}"] = len(trained) / max(1, len(collected.groups))
        learned = (one for group in trained for episode in group.rewarded for one in episode.trajectories)
        metrics[f"blend_tokens/{name or OWN}"] = float(sum(int(one.trainable.sum()) for one in learned))
        if totals:
            metrics[f"blend_reward/{name or OWN}"] = float(np.mean(totals))
    return metrics


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
