"""Ray metrics of a rollout worker, for Prometheus and the Ray dashboard."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from ..envs.failures import Failure
from ..envs.types import Episode
from .weights import SyncReceipt

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]

AVERAGED_EPISODES = 100


class RolloutMetrics:
    """Counters, gauges and histograms tagged with the worker's name."""

    def __init__(self, worker: str) -> None:
        self._tags = {"worker": worker}
        tag_keys = ("worker",)
        self._episodes = Counter("burnish_episodes", "Episodes finished", tag_keys)
        self._failures = Counter("burnish_episode_failures", "Episodes that failed, by cause", ("worker", "kind"))
        self._tokens = Counter("burnish_sampled_tokens", "Tokens sampled by the policy", tag_keys)
        self._reward = Gauge("burnish_episode_reward", "Total reward, moving average over about 100 episodes", tag_keys)
        self._reward_average: float | None = None
        self._seconds = Histogram("burnish_episode_seconds", "Seconds an episode took", SECONDS, tag_keys)
        self._generate = Histogram("burnish_generate_seconds", "Seconds one call of the engine took", SECONDS, tag_keys)
        self._env = Histogram("burnish_env_step_seconds", "Seconds one environment step took, tools included", SECONDS, tag_keys)
        self._version = Gauge("burnish_weight_version", "Version of the engine's weights", tag_keys)
        self._sync = Histogram("burnish_weight_sync_seconds", "Seconds one weight update took", SECONDS, tag_keys)

    def episode(self, episode: Episode) -> None:
        """Count one finished episode."""
        tags = self._tags
        self._episodes.inc(1, tags)
        if isinstance(episode.outcome, Failure):
            self._failures.inc(1, {**tags, "kind": episode.outcome.kind.value})
            return
        self._reward.set(self._averaged(episode.outcome.total), tags)
        self._seconds.observe(episode.metrics["seconds"], tags)
        if episode.metrics["tokens"] > 0:
            self._tokens.inc(episode.metrics["tokens"], tags)
        for turn in episode.turns:
            self._generate.observe(turn.generate_s, tags)
            self._env.observe(turn.env_s, tags)

    def _averaged(self, reward: float) -> float:
        before = self._reward_average
        self._reward_average = reward if before is None else before + (reward - before) / AVERAGED_EPISODES
        return self._reward_average

    def synced(self, receipt: SyncReceipt) -> None:
        """Note one weight update."""
        self._version.set(receipt.version, self._tags)
        self._sync.observe(receipt.seconds, self._tags)
