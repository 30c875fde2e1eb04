"""What one update trains on, as parallel per-token arrays, and how groups of episodes become that.

Torch is not imported here: a loop of one's own makes advantages with numpy, and a `TokenBatch` travels to the learner's process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..envs.types import Bool, Episode, EpisodeGroup, Float32, Int32, Trajectory
from ..rewards.terms import rounding

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """M token sequences laid end to end, N tokens in parallel arrays.

    token_ids: int32 `[N]`. lengths: int64 `[M]`, tokens of each sequence, together N. mask: bool `[N]`, the tokens that are trained.
    advantages: float32 `[N]`. weights: float32 `[N]`, factors of the tokens' losses; a weight changes no denominator, the mask does.
    sampler_logprobs: float32 `[N]`, what the engine sampled with. old_logprobs: float32 `[N]`, of the policy that ratios compare with.
    policy_version: int32 `[N]`, the weights that sampled each token. turn: int32 `[N]`, of the episode. group: int32 `[M]`.
    engines: M names, "" where no engine sampled. scale: float32 `[N]`, what each token's loss is multiplied with, when it was
    computed for a larger batch that this one is a part of. values, returns: float32 `[N]`, what a critic expected at each token, and what
    it is to learn; None without one.

    Outside the mask, log-probabilities, advantages and weights are 0, and policy_version and turn are -1.

    Example: `token_batch([SupervisedExample(ids, trainable)])`, or `GroupBatch(groups).train(advantages)`.
    """

    token_ids: Int32
    lengths: Int64
    mask: Bool
    advantages: Float32
    weights: Float32
    sampler_logprobs: Float32
    old_logprobs: Float32
    policy_version: Int32
    turn: Int32
    group: Int32
    engines: tuple[str, ...] = ()
    scale: Float32 | None = None
    values: Float32 | None = None
    returns: Float32 | None = None

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        per_token = (self.mask, self.advantages, self.weights, self.sampler_logprobs, self.old_logprobs, self.policy_version, self.turn)
        assert all(len(array) == n for array in per_token), "per-token arrays of a batch differ in length"
        assert int(self.lengths.sum()) == n and len(self.group) == len(self.lengths), "lengths or groups do not fit the tokens"

    @cached_property
    def offsets(self) -> Int64:
        """Where each sequence starts, and N: int64 `[M + 1]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def tokens(self) -> int:
        """How many tokens are trained."""
        return int(self.mask.sum())

    @property
    def sequences(self) -> list[Int32]:
        return np.split(self.token_ids, self.offsets[1:-1])

    @property
    def masks(self) -> list[Bool]:
        return np.split(self.mask, self.offsets[1:-1])

    @cached_property
    def sequence(self) -> Int32:
        """The number of the sequence that each token is of: int32 `[N]`."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    def tokens_of(self, sequences: ArrayLike) -> Int64:
        """Where the tokens of some of the sequences are, by number, in the order given: int64 `[n]`."""
        spans = (np.arange(self.offsets[m], self.offsets[m + 1]) for m in np.asarray(sequences, np.int64))
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def minibatches(self, count: int, seed: int) -> list[Int64]:
        """The sequences in `count` parts of whole groups, shuffled by `seed`; fewer parts where there are fewer groups."""
        groups = np.random.default_rng(seed).permutation(np.unique(self.group))
        parts = np.array_split(groups, min(count, len(groups)))
        return [np.flatnonzero(np.isin(self.group, part)) for part in parts]

    def select(self, sequences: ArrayLike) -> TokenBatch:
        """The batch of some of the sequences, by number, in the order given. A `scale` keeps its values: it is of the whole batch."""
        chosen, at = np.asarray(sequences, np.int64), self.tokens_of(sequences)
        return TokenBatch(
            token_ids=self.token_ids[at],
            lengths=self.lengths[chosen],
            mask=self.mask[at],
            advantages=self.advantages[at],
            weights=self.weights[at],
            sampler_logprobs=self.sampler_logprobs[at],
            old_logprobs=self.old_logprobs[at],
            policy_version=self.policy_version[at],
            turn=self.turn[at],
            group=self.group[chosen],
            engines=tuple(self.engines[m] for m in chosen) if self.engines else (),
            scale=None if self.scale is None else self.scale[at],
            values=None if self.values is None else self.values[at],
            returns=None if self.returns is None else self.returns[at],
        )


def plain_batch(sequences: Sequence[tuple[Int32, Bool]]) -> TokenBatch:
    """A batch of (token_ids `[L]`, trainable `[L]`) pairs without advantages: what cross-entropy trains on, or a policy scores."""
    lengths = np.array([len(ids) for ids, _ in sequences], np.int64)
    n = int(lengths.sum())
    mask = np.concatenate([np.zeros(0, np.bool_), *(trainable for _, trainable in sequences)])
    none, nothing = np.full(n, -1, np.int32), np.zeros(n, np.float32)
    return TokenBatch(
        token_ids=np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in sequences)]).astype(np.int32, copy=False),
        lengths=lengths,
        mask=mask,
        advantages=nothing,
        weights=mask.astype(np.float32),
        sampler_logprobs=nothing,
        old_logprobs=nothing,
        policy_version=none,
        turn=none,
        group=np.full(len(lengths), -1, np.int32),
    )


def alike(values: Float64, size: float = 0.0) -> bool:
    """Whether values, `[n]`, differ by rounding at most (`rewards.terms.rounding`): a division by their deviation would make that as large
    as any difference. Example: `alike(np.array([1.0, 1.000003]))` is True."""
    return len(values) == 0 or float(np.ptp(values)) <= rounding([float(values.min()), float(values.max())], size)


def levelled(values: Float64, size: float = 0.0) -> Float64:
    """Values, `[n]`, or as often the first of them where they are `alike`."""
    return np.full_like(values, values[0]) if len(values) and alike(values, size) else values


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """Groups of episodes as an advantage sees them: E rewarded episodes in order, whose trajectories make N tokens.

    Members that failed are absent, not zero. token_rewards: float `[N]`, what single tokens earned beside the totals (a KL penalty), None
    for nothing; outside the mask it does not count. values: float32 `[N]`, what a critic expects the episode still to earn just before each
    trained token, None without a critic. rewards: float64 `[E]`, the totals and what the episode's tokens earned; those of a group that
    differ by no more than `rewards.terms.rounding` are one number, so that no division makes much of nothing. group: int64 `[E]`, the
    number of each episode's group. tokens: the batch without advantages yet.

    Example of an advantage, reward minus the group's mean: `batch.per_token(batch.rewards - batch.group_means(batch.rewards))`.

    Raises FloatingPointError when the engine gave a log-probability of a trained token that is not finite.
    """

    groups: tuple[EpisodeGroup, ...]
    token_rewards: Float32 | None = None
    values: Float32 | None = None
    episodes: tuple[Episode, ...] = field(init=False)
    rewards: Float64 = field(init=False)
    group: Int64 = field(init=False)
    episode: Int64 = field(init=False)
    """The number of the episode that each token is of: int64 `[N]`."""
    tokens: TokenBatch = field(init=False)

    def __post_init__(self) -> None:
        members = [(g, episode) for g, group in enumerate(self.groups) for episode in group.rewarded]
        rows = [(e, g, episode, t) for e, (g, episode) in enumerate(members) for t in range(len(episode.trajectories))]
        set_ = object.__setattr__  # frozen for everyone else
        set_(self, "episodes", tuple(episode for _, episode in members))
        set_(self, "group", np.array([g for g, _ in members], np.int64))
        set_(self, "tokens", _tokens([(g, episode, t) for _, g, episode, t in rows]))
        set_(self, "episode", np.repeat(np.array([e for e, *_ in rows], np.int64), self.tokens.lengths))
        totals = np.array([e.reward.total for e in self.episodes if e.reward is not None], np.float64)
        earned = totals if self.token_rewards is None else totals + self.sums(self.token_rewards)
        sizes = np.array([e.reward.size for e in self.episodes if e.reward is not None], np.float64)
        for g in np.unique(self.group):
            of_group = self.group == g
            earned[of_group] = levelled(earned[of_group], float(sizes[of_group].max()))
        set_(self, "rewards", earned)

    def by_group(self, function: Callable[[Float64], ArrayLike]) -> Float64:
        """`function` of each group's rewards, float64 `[members]`, laid out as `rewards` are: float64 `[E]`."""
        values = np.zeros(len(self.episodes), np.float64)
        for g in range(len(self.groups)):
            at = self.group == g
            values[at] = function(self.rewards[at])
        return values

    def group_means(self, values: ArrayLike) -> Float64:
        """The mean over the members of each episode's group: float64 `[E]` to float64 `[E]`."""
        given = np.asarray(values, np.float64)
        sums, counts = (np.bincount(self.group, w, minlength=len(self.groups)) for w in (given, np.ones_like(given)))
        means: Float64 = (sums / np.maximum(counts, 1))[self.group]
        return means

    def sums(self, values: ArrayLike) -> Float64:
        """The sum of `[N]` over each episode's trained tokens: float64 `[E]`."""
        trained = np.where(self.tokens.mask, np.asarray(values, np.float64), 0.0)
        return np.bincount(self.episode, trained, minlength=len(self.episodes)).astype(np.float64)

    def to_go(self) -> Float64:
        """What is still to be earned at each trained token, itself included: the episode's reward less what its tokens before it earned.

        float64 `[N]`, 0 outside the mask. Without token_rewards, the episode's reward at each of its tokens.
        """
        rewards = np.where(self.tokens.mask, self.rewards[self.episode], 0.0)
        if self.token_rewards is None:
            return rewards
        earned = np.where(self.tokens.mask, self.token_rewards.astype(np.float64), 0.0)
        running = np.cumsum(earned) - earned
        starts = np.searchsorted(self.episode, np.arange(len(self.episodes)))
        before = running - running[np.minimum(starts, max(len(running) - 1, 0))][self.episode] if len(running) else running
        return np.where(self.tokens.mask, rewards - before, 0.0)

    def per_token(self, values: ArrayLike) -> Float32:
        """A value per episode, `[E]`, at each of its trained tokens: float32 `[N]`."""
        given = np.asarray(values, np.float32)
        return np.where(self.tokens.mask, given[self.episode], np.float32(0))

    def per_turn(self, values: Sequence[ArrayLike]) -> Float32:
        """E lists of a value per turn, at each trained token of that turn: float32 `[N]`. Raises ValueError when a list is too short."""
        found = np.zeros(len(self.episode), np.float32)
        for e, of_episode in enumerate(values):
            given = np.asarray(of_episode, np.float32)
            at = np.flatnonzero((self.episode == e) & self.tokens.mask)
            turns = self.tokens.turn[at]
            if len(turns) and turns.max() >= len(given):
                raise ValueError(f"episode {self.episodes[e].id} has {turns.max() + 1} turns, but {len(given)} values are given for them")
            found[at] = given[turns]
        return found

    def train(self, advantages: ArrayLike, weights: ArrayLike | None = None) -> TokenBatch:
        """The batch to train on. advantages, weights: `[N]`; outside the mask they do not count.

        Raises ValueError when one has another shape or is not finite where it counts.
        """
        mask = self.tokens.mask
        rows = {"advantages": advantages, "weights": mask if weights is None else weights}
        clean = {}
        for name, given in rows.items():
            array = np.asarray(given, np.float32)
            if array.shape != mask.shape:
                raise ValueError(f"{name} must have one value per token, {mask.shape}, not {array.shape}; see GroupBatch.per_token")
            if not np.isfinite(array[mask]).all():
                raise ValueError(f"{name} of {int((~np.isfinite(array[mask])).sum())} trained tokens are not finite")
            clean[name] = np.where(mask, array, np.float32(0))
        return replace(self.tokens, advantages=clean["advantages"], weights=clean["weights"])


def _tokens(rows: Sequence[tuple[int, Episode, int]]) -> TokenBatch:
    """The trajectories of (group, episode, number of the trajectory), end to end."""
    trajectories = [episode.trajectories[t] for _, episode, t in rows]
    for (_, episode, _), trajectory in zip(rows, trajectories, strict=True):
        if not np.isfinite(trajectory.logprobs[trajectory.trainable]).all():
            raise FloatingPointError(f"episode {episode.id}: the engine gave a log-probability that is not finite")
    bare = plain_batch([(trajectory.token_ids, trajectory.trainable) for trajectory in trajectories])
    sampled = np.concatenate([np.zeros(0, np.float32), *(t.logprobs for t in trajectories)]).astype(np.float32, copy=False)
    return replace(
        bare,
        sampler_logprobs=sampled,
        old_logprobs=sampled,
        policy_version=np.concatenate([np.zeros(0, np.int32), *(t.policy_version for t in trajectories)]).astype(np.int32, copy=False),
        turn=np.concatenate([np.zeros(0, np.int32), *_turns(rows)]),
        group=np.array([g for g, _, _ in rows], np.int32),
        engines=tuple(episode.engine for _, episode, _ in rows),
    )


def _turns(rows: Sequence[tuple[int, Episode, int]]) -> list[Int32]:
    """The turn of every token of each row. A turn is trained in one trajectory only, so an episode's turns follow each other."""
    found: list[Int32] = []
    after = 0
    for _, episode, t in rows:
        trajectory, first = episode.trajectories[t], after if t else 0  # an episode's trajectories stand together
        turn = _runs(trajectory) if not episode.turns else _by_length(episode, trajectory, first)
        after = int(turn.max(initial=first - 1)) + 1 if episode.turns else first + int(turn.max(initial=-1)) + 1
        found.append(np.where(turn >= 0, turn + (0 if episode.turns else first), -1).astype(np.int32))
    return found


def _runs(trajectory: Trajectory) -> Int32:
    """Turns by their gaps: each run of trained tokens is one."""
    mask = trajectory.trainable
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    return np.where(mask, np.cumsum(starts) - 1, -1).astype(np.int32)


def _by_length(episode: Episode, trajectory: Trajectory, first: int) -> Int32:
    """Turns by how many tokens each sampled, from turn `first` on."""
    at = np.flatnonzero(trajectory.trainable)
    ends = np.cumsum([len(turn.token_ids) for turn in episode.turns[first:]])
    turn = np.full(len(trajectory), -1, np.int32)
    turn[at] = first + np.searchsorted(ends, np.arange(len(at)), side="right")
    assert not len(at) or turn[at[-1]] < len(episode.turns), f"episode {episode.id} trains more tokens than its turns sampled"
    return turn
