"""One episode: a conversation between the policy and one fresh environment, token-in and token-out."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..envs.contract import ConversationEnv, Observation, StepInfo, StepResult, make_env, reset_env, step_env
from ..envs.failures import EpisodeFailure, Failure, FailureKind, boundary
from ..envs.types import Episode, Message, Outcome, Task, Truncation, Turn
from ..rewards.rubric import Rubric
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


async def run_episode(parts: EpisodeParts, task: Task, sample: int, temperature: float, attempt: int = 0) -> Episode:
    """Run and score one episode. Infrastructure failures become its outcome; only cancellation propagates.

    attempt: 0, 1, …; environment and sampling start afresh, under an episode id of their own.
    """
    started = time.monotonic()
    attempt_id = f"{task.id}/{sample}" if attempt == 0 else f"{task.id}/{sample}~{attempt}"
    try:
        async with _deadline(parts.limits.episode_timeout_s, FailureKind.ENV_TIMEOUT, f"episode {attempt_id}"):
            talk = await _converse(parts, task, attempt_id, temperature)
            outcome, labels = await _score(parts.rubric, task, attempt_id, talk)
    except EpisodeFailure as error:
        return Episode(task, sample, (), (), error.failure)
    sampled = sum(len(turn.token_ids) for turn in talk.turns)
    metrics = {**talk.info.metrics, "turns": float(len(talk.turns)), "tokens": float(sampled), "seconds": time.monotonic() - started}
    all_labels = {**talk.info.labels, **labels}
    return Episode(task, sample, (talk.builder.build(),), talk.messages, outcome, talk.turns, talk.truncation, metrics, all_labels)


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


async def _score(rubric: Rubric, task: Task, attempt_id: str, talk: Conversation) -> tuple[Outcome, dict[str, str]]:
    metrics = {**talk.info.metrics, "turns": float(len(talk.turns))}
    data = {**task.data, **talk.info.data}
    seen = RewardInput(attempt_id, task, talk.messages, talk.env_reward, talk.info.reward_parts, metrics, data, talk.truncation)
    return await rubric.score(seen)


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
    """`run_episode`, tried again from the start after an infrastructure failure, `limits.retries` times at most."""
    attempt = 0
    while True:
        episode = await run_episode(parts, task, sample, temperature, attempt)
        failure = episode.outcome
        if not isinstance(failure, Failure) or failure.kind is FailureKind.CANCELLED or failure.kind.is_scoring:
            return episode  # the rubric has tried the scoring again already
        if attempt == parts.limits.retries:
            break
        attempt += 1
    tried = f" (episode tried {attempt + 1} times)" if attempt else ""
    return replace(episode, outcome=replace(failure, detail=failure.detail + tried))
