"""A conversation between the policy and one fresh environment, token-in and token-out.

Time is counted apart. What the engine takes is the policy's: when `episode_timeout_s` of it is spent, the episode is cut short, and
rewarded as any other that ran into a limit. An engine that hangs is none of the policy's doing, and a failure: whether it is slow or hangs
is told by the tokens that it samples, and the episode waits until it is known. What the environment takes is the environment's: a call
past `step_timeout_s`, or calls that take more than `episode_timeout_s` together, are a failure. Closing has time of its own, and whether
it works loses no episode.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..envs.contract import ConversationEnv, StepInfo, make_env, reset_env, step_env
from ..envs.failures import EpisodeFailure, Failure, FailureKind, boundary
from ..envs.tool_calls import check_agreement
from ..envs.types import Message, Task, Truncation, Turn
from ..rewards.rubric import Rubric
from .busy import Meter
from .config import RolloutConfig
from .ended import all_ended
from .engine.base import Engine, GenerateRequest, Generation, OutOfTime
from .hung import LeftBehind
from .renderers import Renderer
from .trajectory import TrajectoryBuilder

T = TypeVar("T")

MIN_CLOSE_S = 1.0
"""Seconds that an environment has to close at the least, however short its steps must be."""

LONG_CHARS = 20_000
"""Characters of a conversation that is rendered and encoded in a thread: on the event loop, all other episodes would wait for it."""

log = logging.getLogger("burnish.rollout.conversation")


@dataclass(frozen=True)
class EpisodeParts:
    """What every episode of a worker shares. env_id and env_args make one fresh environment per episode; threads runs them.

    tool_parser: what reads tool calls as the model's chat template writes them; None when it shows none. meter: counts what is under way.
    left: the calls that nobody waits for any longer. others: the parts of tasks that another environment plays, by its name. success: the
    part of the reward that success is measured by, "" where nobody has said. actor, node: Ray's ids of where they are played, "" outside
    of Ray.
    """

    env_id: str
    env_args: Mapping[str, Any]
    engine: Engine
    renderer: Renderer
    rubric: Rubric
    limits: RolloutConfig
    threads: Executor
    seed: int
    tool_parser: str | None = None
    meter: Meter = field(default_factory=Meter)
    left: LeftBehind = field(default_factory=LeftBehind)
    others: Mapping[str, EpisodeParts] = field(default_factory=dict)
    success: str = ""
    actor: str = ""
    node: str = ""

    def of(self, task: Task) -> EpisodeParts:
        """Those that play a task."""
        return self.others[task.environment] if task.environment else self

    @property
    def close_s(self) -> float:
        """Seconds that an environment may take to close."""
        return max(self.limits.step_timeout_s, MIN_CLOSE_S)


@dataclass
class Talk:
    """A conversation as it grows. What there is of it stays when it fails.

    env_reward: sum of the steps' rewards. info: what the environment's infos amount to so far. tools: those that the prompt describes.
    """

    builder: TrajectoryBuilder = field(default_factory=TrajectoryBuilder)
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    env_reward: float = 0.0
    info: StepInfo = field(default_factory=StepInfo)
    tools: tuple[Mapping[str, Any], ...] = ()
    truncation: Truncation | None = None


@dataclass
class _Span:
    """When a call began and ended in its thread, by the clock of the deadlines; the event loop may hear of it late, at nobody's cost."""

    now: Callable[[], float]
    began: float
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.now() if self.ended is None else self.ended) - self.began


async def converse(parts: EpisodeParts, task: Task, attempt_id: str, temperature: float, talk: Talk) -> None:
    """Hold the conversation of one episode, in `talk`. Raises EpisodeFailure for what the infrastructure causes."""
    await _Episode(parts, task, attempt_id, temperature, talk).run()


class _Episode:
    """One conversation with its environment, its clocks and what has been rendered of it."""

    def __init__(self, parts: EpisodeParts, task: Task, attempt_id: str, temperature: float, talk: Talk) -> None:
        self.parts, self.task, self.id, self.temperature, self.talk = parts, task, attempt_id, temperature, talk
        self.policy_s = self.env_s = parts.limits.episode_timeout_s  # what is left to either
        self.shown = ""  # all that the policy has seen and said in the trajectory that grows now

    async def run(self) -> None:
        env = await self.call(self.make, "make", unwanted=self.close_later)
        try:
            await self.talk_to(env)
        except BaseException as error:
            unclosed = await self.closed(env)
            if unclosed is not None:
                error.add_note(str(unclosed))  # what ended the episode is why it failed, not what its remains did
            raise
        unclosed = await self.closed(env)
        if unclosed is not None:
            log.warning("episode %s ended well, and its environment did not close: %s", self.id, unclosed)

    async def talk_to(self, env: ConversationEnv) -> None:
        parts, talk = self.parts, self.talk
        talk.messages += self.task.prompt
        messages, talk.info = await self.call(lambda: reset_env(env, parts.env_id, self.task, self.id, parts.tool_parser), "reset")
        check_agreement(talk.info.data.get("tool_parser"), parts.tool_parser)
        talk.messages += messages
        talk.tools = talk.info.tools if parts.limits.describe_tools else ()
        if not await self.prompted():
            size = f"{len(talk.builder)} tokens" if len(talk.builder) else f"{len(self.shown):,} characters"
            detail = f"the prompt of task {self.id} has {size}, engine.max_context is {parts.engine.max_context}"
            raise EpisodeFailure(Failure(FailureKind.ENV_ERROR, parts.env_id, f"{detail}; raise it or shorten the prompt"))
        while talk.truncation is None:
            room = parts.engine.max_context - len(talk.builder)
            generation = await self.generate(min(room, parts.limits.max_tokens_per_turn))
            if generation is None:
                talk.truncation = "time"
                break
            cut: Truncation | None = None
            if generation.stop_reason == "length":
                cut = "context" if room < parts.limits.max_tokens_per_turn else "max_tokens"
            if await self.take_turn(env, generation):
                talk.truncation = cut
                break
            if talk.truncation is None and len(talk.turns) == parts.limits.max_turns:
                talk.truncation = "max_turns"
            if talk.truncation is None and not await self.prompted():
                talk.truncation = "context"

    async def take_turn(self, env: ConversationEnv, generation: Generation) -> bool:
        """Give the environment what was sampled; whether that ended the episode."""
        talk = self.talk
        talk.builder.sampled(generation)
        said = self.parts.renderer.read(generation.token_ids)
        self.shown += said.shown
        talk.messages.append(Message("assistant", said.text))
        asked, given = time.monotonic(), 0.0
        try:
            step = await self.call(lambda: step_env(env, self.parts.env_id, said.text), "step")
            given = step.reward
        finally:
            talk.turns.append(_turn(generation, time.monotonic() - asked, given))
        talk.env_reward, talk.info = talk.env_reward + step.reward, talk.info.then(step.info)
        if not all(map(math.isfinite, (talk.env_reward, *talk.info.reward_parts.values()))):
            what = "its rewards, or a part of them, add up to more than a number holds"
            raise EpisodeFailure(Failure(FailureKind.ENV_ERROR, self.parts.env_id, what))
        if not step.terminated:
            talk.messages += step.messages
            talk.truncation = "env" if step.truncated else None
        return step.terminated

    async def prompted(self) -> bool:
        """Bring the context up to the next turn of the policy; False when it is too long to answer.

        What is new is appended where the conversation, rendered whole, begins with all that was seen and said. Otherwise the template has
        rewritten something of it, and a new trajectory begins.
        """
        talk, limit = self.talk, self.parts.engine.max_context
        long = sum(len(message.text) for message in talk.messages) > LONG_CHARS
        work = self.parts.threads.submit(self.rendered) if long else None  # the loop has other episodes to answer
        whole, appended, new = await asyncio.wrap_future(work) if work else self.rendered()
        if new is None or (appended and len(talk.builder) + len(new) >= limit):
            self.shown = whole
            return False  # an observation that nothing follows is left out
        if appended:
            talk.builder.observed(new)
        else:
            talk.builder.open(new)
        self.shown = whole
        return len(talk.builder) < limit

    def rendered(self) -> tuple[str, bool, list[int] | None]:
        """The conversation as text, whether it begins with what was seen and said, and the ids of what is new in it; None for those where
        it is certainly too long."""
        talk, renderer, limit = self.talk, self.parts.renderer, self.parts.engine.max_context
        with boundary(FailureKind.ENV_ERROR, self.parts.env_id):
            whole = renderer.prompt(talk.messages, talk.tools)
            appended = bool(talk.turns) and whole.startswith(self.shown)
            new = whole[len(self.shown) :] if appended else whole
            if not renderer.fits(new, limit):
                return whole, appended, None
            return whole, appended, renderer.encode_after_turn(new) if appended else renderer.encode(new)

    async def generate(self, max_tokens: int) -> Generation | None:
        """What the policy says next; None when its time is over."""
        request_id = f"{self.id}/{len(self.talk.turns)}"
        seed = request_seed(self.parts.seed, request_id)
        stops = self.parts.renderer.stop_token_ids
        context = list(self.talk.builder.token_ids)
        request = GenerateRequest(request_id, context, max_tokens, self.temperature, stops, seed, max_seconds=self.policy_s)
        try:
            with self.parts.meter.running("engine"):
                generation = await self.parts.engine.generate(request)
        except OutOfTime:
            return None
        self.policy_s -= generation.seconds
        if not np.isfinite(generation.logprobs).all():
            what = f"request {request_id}: a log-probability that is not finite"
            raise EpisodeFailure(Failure(FailureKind.ENGINE_ERROR, self.parts.engine.name, what))
        return generation

    async def call(self, call: Callable[[], T], what: str, unwanted: Callable[[T], None] | None = None) -> T:
        """Run environment code in a thread. A call that overruns its deadline fails the episode; its thread is left behind.

        unwanted: is given what the call gives when nobody waits for it any longer; from any thread.
        """
        limits = self.parts.limits
        seconds = min(limits.step_timeout_s, max(self.env_s, 0.0))
        overran = f"no answer within {seconds:.3g} s"
        if seconds < limits.step_timeout_s:
            overran += f", what was left of the {limits.episode_timeout_s:g} s that an environment may take in one episode"
        late = Failure(FailureKind.ENV_TIMEOUT, f"{self.parts.env_id} {what}", overran)
        now = asyncio.get_running_loop().time
        span = _Span(now, now())
        try:
            with self.parts.meter.running("environment"):
                return await self.in_thread(call, what, seconds, late, span, unwanted)
        finally:
            self.env_s -= span.seconds

    async def in_thread(
        self,
        call: Callable[[], T],
        what: str,
        seconds: float,
        late: Failure,
        span: _Span,
        unwanted: Callable[[T], None] | None = None,
    ) -> T:
        """Run environment code in a thread. Where it is not waited for to its end, it goes on, and is counted. Whether it was in time,
        its own clock tells: the event loop may have been held up by others."""

        def attributed() -> T:
            try:
                with boundary(FailureKind.ENV_ERROR, self.parts.env_id):
                    return call()
            finally:
                span.ended = span.now()

        running = self.parts.threads.submit(attributed)
        heard = asyncio.wrap_future(running)
        try:
            await asyncio.wait({heard}, timeout=seconds)
            if running.done() and span.seconds <= seconds:
                return heard.result() if heard.done() else running.result()
            raise EpisodeFailure(late)
        except BaseException:
            if unwanted is not None:
                running.add_done_callback(partial(_hand_over, unwanted))
            raise
        finally:
            if not heard.cancel() and not heard.cancelled():
                heard.exception()  # it was late or nobody waits for it: read, so that asyncio does not say that it never was
            if not running.done():
                self.parts.left.add(f"{self.parts.env_id} {what}", running)

    def make(self) -> ConversationEnv:
        return make_env(self.parts.env_id, **self.parts.env_args)

    def close_later(self, env: ConversationEnv) -> None:
        """Close an environment that came when nobody waited for it any longer."""
        what = f"{self.parts.env_id} close"
        self.parts.left.add(what, self.parts.threads.submit(self.close_logged, env))

    def close_logged(self, env: ConversationEnv) -> None:
        try:
            self.close_now(env)
        except EpisodeFailure as unclosed:
            log.warning("the environment of episode %s came late, and did not close: %s", self.id, unclosed)

    async def closed(self, env: ConversationEnv) -> EpisodeFailure | None:
        """`close`, to its end; whoever cancels the episode meanwhile waits for it too."""
        closing = asyncio.ensure_future(self.close(env))
        await all_ended([closing])
        return closing.result()

    async def close(self, env: ConversationEnv) -> EpisodeFailure | None:
        """Close the environment, whatever time it has spent before; what went wrong, or None."""
        seconds = self.parts.close_s
        late = Failure(FailureKind.ENV_TIMEOUT, f"{self.parts.env_id} close", f"no answer within {seconds:.3g} s")
        now = asyncio.get_running_loop().time
        try:
            with self.parts.meter.running("environment"):
                await self.in_thread(env.close, "close", seconds, late, _Span(now, now()))
        except EpisodeFailure as failure:
            return failure
        return None

    def close_now(self, env: ConversationEnv) -> None:
        with boundary(FailureKind.ENV_ERROR, self.parts.env_id):
            env.close()


def _hand_over(taker: Callable[[T], None], call: Future[T]) -> None:
    """Give what a call has given, if it has, to whoever takes it."""
    if not call.cancelled() and call.exception() is None:
        taker(call.result())


class deadline:
    """`asyncio.timeout` whose expiry is the given failure."""

    def __init__(self, seconds: float, failure: Failure) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._failure = failure

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


def _turn(generation: Generation, env_s: float, env_reward: float) -> Turn:
    g = generation
    return Turn(g.token_ids, g.logprobs, g.policy_version, g.stop_reason, g.seconds, env_s, env_reward)
