"""One episode: a conversation, judged; tried again when the infrastructure failed it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..envs.failures import MAX_DETAIL, EpisodeFailure, Failure, FailureKind, fit
from ..envs.types import Episode, Outcome, Task
from ..rewards.rubric import SECONDS, Judged, Scored, named_labels
from ..rewards.types import RewardInput
from .conversation import EpisodeParts, Talk, converse, deadline

NOT_AGAIN = (FailureKind.CANCELLED, FailureKind.ENGINE_TIMEOUT)
"""What another attempt would meet again."""


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that has ended and was judged by itself; what it is worth may still depend on the rest of its group.

    judged: what the rubric's single scorers said, or why there is no reward. talk: the conversation, as far as it came when it failed.
    seconds: from the start until it was judged. judge_s: of those, what the single scorers took, waiting for their turn included.
    """

    task: Task
    sample: int
    judged: Judged | Failure
    talk: Talk
    seconds: float = 0.0
    judge_s: float = 0.0

    def episode(self, result: Scored | Failure, success: str) -> Episode:
        """The episode with its outcome. Of the scorers' labels, those of whoever gives the part `success` are read. A failed one keeps what
        was said, and nothing to train on."""
        talk = self.talk
        outcome: Outcome = result if isinstance(result, Failure) else result.reward
        said = Episode(
            self.task, self.sample, (), tuple(talk.messages), outcome, tuple(talk.turns), talk.truncation,
            tools=talk.tools, env_data=talk.info.data,
        )  # fmt: skip
        if isinstance(result, Failure):
            return said
        sampled = sum(len(turn.token_ids) for turn in talk.turns)
        own = {"turns": float(len(talk.turns)), "tokens": float(sampled), "seconds": self.seconds, "judge_seconds": self.judge_s}
        own |= {name + SECONDS: seconds for name, seconds in result.seconds.items()}
        named = named_labels(result.labels, talk.info.labels, success)
        return replace(said, trajectories=talk.builder.build(), metrics={**talk.info.metrics, **own}, labels=named)


async def run_episode(parts: EpisodeParts, task: Task, sample: int, temperature: float, attempt: int = 0) -> Episode:
    """`play_episode`, rewarded by itself."""
    return (await reward_together(parts, [await play_episode(parts, task, sample, temperature, attempt)]))[0]


async def play_episode(parts: EpisodeParts, task: Task, sample: int, temperature: float, attempt: int = 0) -> Played:
    """Run and judge one episode. Infrastructure failures take the place of the judgement; only cancellation propagates.

    attempt: 0, 1, …; environment and sampling start afresh, under an episode id of their own.
    """
    started, talk = time.monotonic(), Talk()
    attempt_id = f"{task.id}/{sample}" if attempt == 0 else f"{task.id}/{sample}~{attempt}"
    seconds = parts.limits.episode_timeout_s
    late = Failure(FailureKind.VERIFIER_TIMEOUT, f"rewards of episode {attempt_id}", f"no judgement within {seconds:g} s")
    try:
        await converse(parts, task, attempt_id, temperature, talk)
        ended = time.monotonic()
        async with deadline(seconds, late):
            with parts.meter.running("rewards"):
                judged = await parts.rubric.judge(_seen(task, attempt_id, talk))
    except EpisodeFailure as error:
        return Played(task, sample, error.failure, talk, time.monotonic() - started)
    now = time.monotonic()
    return Played(task, sample, judged, talk, now - started, now - ended)


async def reward_together(parts: EpisodeParts, played: Sequence[Played]) -> tuple[Episode, ...]:
    """The episodes of one group, in order, each with its outcome: rewards compare the members that were judged."""
    judged = [one.judged for one in played if isinstance(one.judged, Judged)]
    scored = iter(await parts.rubric.score_group(judged))
    results = [one.judged if isinstance(one.judged, Failure) else next(scored) for one in played]
    return tuple(one.episode(result, parts.success) for one, result in zip(played, results, strict=True))


def _seen(task: Task, attempt_id: str, talk: Talk) -> RewardInput:
    metrics = {**talk.info.metrics, "turns": float(len(talk.turns))}
    data = {**task.data, **talk.info.data}
    return RewardInput(attempt_id, task, tuple(talk.messages), talk.env_reward, talk.info.reward_parts, metrics, data, talk.truncation)


async def run_with_retries(parts: EpisodeParts, task: Task, sample: int, temperature: float) -> Episode:
    """`play_with_retries`, rewarded by itself."""
    return (await reward_together(parts, [await play_with_retries(parts, task, sample, temperature)]))[0]


async def play_with_retries(parts: EpisodeParts, task: Task, sample: int, temperature: float) -> Played:
    """`play_episode`, tried again from the start after an infrastructure failure, `limits.retries` times at most.

    Not where the engine hangs, which it does for every attempt: it is replaced first.
    """
    attempt = 0
    while True:
        played = await play_episode(parts, task, sample, temperature, attempt)
        failure = played.judged
        if not isinstance(failure, Failure) or failure.kind in NOT_AGAIN or failure.kind.is_scoring:
            return played  # the rubric has tried the scoring again already
        if attempt == parts.limits.retries:
            break
        attempt += 1
    tried = f" (episode tried {attempt + 1} times)" if attempt else ""
    return replace(played, judged=replace(failure, detail=fit(failure.detail, MAX_DETAIL - len(tried)) + tried))
