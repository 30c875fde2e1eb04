"""One episode: a conversation between the policy and one fresh environment, token-in and token-out."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..envs.contract import ConversationEnv, Observation, StepInfo, StepResult, make_env, reset_env, step_env
from ..envs.failures import EpisodeFailure, Failure, FailureKind, boundary
from ..envs.types import Episode, Message, Outcome, Task, Truncation, Turn
from ..rewards.rubric import Judged, Rubric
from ..rewards.types import RewardInput
from .chat import ChatFormat
from .config import RolloutConfig
from .engine.base import Engine, GenerateRequest, Generation
from .trajectory import TrajectoryBuilder

T = TypeVar("T")


@dataclass(frozen=True)
class EpisodeParts:
    """What every episode of a worker shares. env_id and env_args make one fresh environment per episode; threads runs them."""

    env_id: str
    env_args: Mapping[str, Any]
    engine: Engine
    chat: ChatFormat
    rubric: Rubric
    limits: RolloutConfig
    threads: Executor
    seed: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """An episode before it is scored."""

    builder: TrajectoryBuilder
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    env_reward: float
    info: StepInfo
    truncation: Truncation | None


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that has ended and was judged by itself; what it is worth may still depend on the rest of its group.

    judged: what the rubric's single scorers said, or why there is no reward. talk: None when the conversation itself failed.
    seconds: from the start until it was judged.
    """

    task: Task
    sample: int
    judged: Judged | Failure
    talk: Conversation | None = None
    seconds: float = 0.0

    def episode(self, outcome: Outcome, labels: Mapping[str, str]) -> Episode:
        """The episode with its outcome; `labels` are those of the scorers. A failed one keeps nothing of its conversation."""
        talk = self.talk
        if isinstance(outcome, Failure) or talk is None:
            assert isinstance(outcome, Failure), "a reward needs a conversation"
            return Episode(self.task, self.sample, (), (), outcome)
        sampled = sum(len(turn.token_ids) for turn in talk.turns)
        metrics = {**talk.info.metrics, "turns": float(len(talk.turns)), "tokens": float(sampled), "seconds": self.seconds}
        trajectories, all_labels = (talk.builder.build(),), {**talk.info.labels, **labels}
        return Episode(self.task, self.sample, trajectories, talk.messages, outcome, talk.turns, talk.truncation, metrics, all_labels)


async def run_episode(parts: EpisodeParts, task: Task, sample: int, temperature: float, attempt: int = 0) -> Episode:
    """`play_episode`, rewarded by itself."""
    return (await reward_together(parts.rubric, [await play_episode(parts, task, sample, temperature, attempt)]))[0]


async def play_episode(parts: EpisodeParts, task: Task, sample: int, temperature: float, attempt: int = 0) -> Played:
    """Run and judge one episode. Infrastructure failures take the place of the judgement; only cancellation propagates.

    attempt: 0, 1, …; environment and sampling start afresh, under an episode id of their own.
    """
    started = time.monotonic()
    attempt_id = f"{task.id}/{sample}" if attempt == 0 else f"{task.id}/{sample}~{attempt}"
    try:
        async with _deadline(parts.limits.episode_timeout_s, FailureKind.ENV_TIMEOUT, f"episode {attempt_id}"):
            talk = await _converse(parts, task, attempt_id, temperature)
            judged = await parts.rubric.judge(_seen(task, attempt_id, talk))
    except EpisodeFailure as error:
        return Played(task, sample, error.failure)
    return Played(task, sample, judged, talk, time.monotonic() - started)


async def reward_together(rubric: Rubric, played: Sequence[Played]) -> tuple[Episode, ...]:
    """The episodes of one group, in order, each with its outcome: rewards compare the members that were judged."""
    judged = [one.judged for one in played if isinstance(one.judged, Judged)]
    scored = iter(await rubric.score_group(judged))
    episodes = []
    for one in played:
        result = one.judged if isinstance(one.judged, Failure) else next(scored)
        outcome, labels = (result, dict[str, str]()) if isinstance(result, Failure) else result
        episodes.append(one.episode(outcome, labels))
    return tuple(episodes)


async def _converse(parts: EpisodeParts, task: Task, attempt_id: str, temperature: float) -> Conversation:
    env: ConversationEnv | None = None
    try:
        env = await _in_thread(parts, lambda: _make(parts), "make")
        messages, info = await _in_thread(parts, lambda: reset_env(env, parts.env_id, task, attempt_id), "reset")
        return await _talk(parts, env, _Start((*task.prompt, *messages), info), attempt_id, temperature)
    finally:
        if env is not None:
            await asyncio.shield(_in_thread(parts, env.close, "close"))


@dataclass(frozen=True, slots=True)
class _Start:
    messages: Observation
    info: StepInfo


async def _talk(parts: EpisodeParts, env: ConversationEnv, start: _Start, attempt_id: str, temperature: float) -> Conversation:
    limits, chat = parts.limits, parts.chat
    messages, info, total, turns = list(start.messages), start.info, 0.0, list[Turn]()
    builder = TrajectoryBuilder(chat.prompt_ids(messages, info.tools if limits.describe_tools else ()))
    truncation: Truncation | None = None
    if parts.engine.max_context <= len(builder):
        detail = f"the prompt of task {attempt_id} has {len(builder)} tokens, engine.max_context is {parts.engine.max_context}"
        raise EpisodeFailure(Failure(FailureKind.ENV_ERROR, parts.env_id, f"{detail}; raise it or shorten the prompt"))
    while truncation is None:
        room = parts.engine.max_context - len(builder)
        generation = await _generate(parts, builder, f"{attempt_id}/{len(turns)}", min(room, limits.max_tokens_per_turn), temperature)
        builder.sampled(generation)
        text = chat.text(generation.token_ids)
        messages.append(Message("assistant", text))
        asked = time.monotonic()
        step = await _step(parts, env, text)
        turns.append(_turn(generation, time.monotonic() - asked))
        total, info = total + step.reward, info.then(step.info)
        if step.terminated:
            break
        messages += step.messages
        truncation = "env" if step.truncated else "max_turns" if len(turns) == limits.max_turns else None
        observed = chat.continuation_ids(step.messages, after_stop=generation.stop_reason == "stop")
        if truncation is None and len(builder) + len(observed) >= parts.engine.max_context:
            truncation = "context"
        if truncation is None:
            builder.observed(observed)
    return Conversation(builder, tuple(messages), tuple(turns), total, info, truncation)


async def _step(parts: EpisodeParts, env: ConversationEnv, text: str) -> StepResult:
    return await _in_thread(parts, lambda: step_env(env, parts.env_id, text), "step")


async def _generate(parts: EpisodeParts, builder: TrajectoryBuilder, request_id: str, max_tokens: int, temperature: float) -> Generation:
    seed = request_seed(parts.seed, request_id)
    request = GenerateRequest(request_id, list(builder.token_ids), max_tokens, temperature, parts.chat.stop_token_ids, seed)
    return await parts.engine.generate(request)


def _seen(task: Task, attempt_id: str, talk: Conversation) -> RewardInput:
    metrics = {**talk.info.metrics, "turns": float(len(talk.turns))}
    data = {**task.data, **talk.info.data}
    return RewardInput(attempt_id, task, talk.messages, talk.env_reward, talk.info.reward_parts, metrics, data, talk.truncation)


def _make(parts: EpisodeParts) -> ConversationEnv:
    with boundary(FailureKind.ENV_ERROR, parts.env_id):
        return make_env(parts.env_id, **parts.env_args)


def _turn(generation: Generation, env_s: float) -> Turn:
    g = generation
    return Turn(g.token_ids, g.logprobs, g.policy_version, g.stop_reason, g.seconds, env_s)


async def _in_thread(parts: EpisodeParts, call: Callable[[], T], what: str) -> T:
    """Run environment code in a thread. A call that overruns its deadline fails the episode; its thread is left behind."""
    loop = asyncio.get_running_loop()
    async with _deadline(parts.limits.step_timeout_s, FailureKind.ENV_TIMEOUT, f"{parts.env_id} {what}"):
        return await loop.run_in_executor(parts.threads, call)


class _deadline:
    """`asyncio.timeout` whose expiry is an `EpisodeFailure` that names the culprit."""

    def __init__(self, seconds: float, kind: FailureKind, culprit: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._failure = Failure(kind, culprit, f"no answer within {seconds:g} s")

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError as expired:
            raise EpisodeFailure(self._failure) from expired


def request_seed(run_seed: int, request_id: str) -> int:
    """A 31-bit sampling seed that depends on nothing but the run's seed and the request, whatever order requests arrive in."""
    digest = hashlib.blake2b(f"{run_seed}:{request_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFF_FFFF


async def run_with_retries(parts: EpisodeParts, task: Task, sample: int, temperature: float) -> Episode:
    """`play_with_retries`, rewarded by itself."""
    return (await reward_together(parts.rubric, [await play_with_retries(parts, task, sample, temperature)]))[0]


async def play_with_retries(parts: EpisodeParts, task: Task, sample: int, temperature: float) -> Played:
    """`play_episode`, tried again from the start after an infrastructure failure, `limits.retries` times at most."""
    attempt = 0
    while True:
        played = await play_episode(parts, task, sample, temperature, attempt)
        failure = played.judged
        if not isinstance(failure, Failure) or failure.kind is FailureKind.CANCELLED or failure.kind.is_scoring:
            return played  # the rubric has tried the scoring again already
        if attempt == parts.limits.retries:
            break
        attempt += 1
    tried = f" (episode tried {attempt + 1} times)" if attempt else ""
    return replace(played, judged=replace(failure, detail=failure.detail + tried))
