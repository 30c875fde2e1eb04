"""The rollout worker: one engine, one event loop, many episodes in flight. A plain class; a Ray actor merely wraps it."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from ..envs.failures import short_traceback
from ..envs.named import import_module
from ..envs.registry import load_plugin
from ..envs.tool_calls import parser_of_template
from ..envs.types import Episode, EpisodeGroup, Float32, Task
from ..rewards.build import make_rubric
from ..rewards.calling.threads import Daemons
from ..rewards.config import RewardConfig
from ..rewards.rubric import ENV_PART
from ..rpc.user_code import is_asked_for
from .busy import Part
from .collect import collect
from .config import RolloutConfig
from .conversation import EpisodeParts
from .ended import all_ended
from .engine import make_engine
from .engine.base import Engine
from .engine.config import EngineConfig
from .hung import LoopEnded
from .renderers import Renderer, TemplateRenderer
from .tokenizer import load_tokenizer
from .transport.parcel import Parcel
from .weights import StaleEngine, SyncReceipt, Weights, sync_weights

T = TypeVar("T")

log = logging.getLogger("burnish.rollout.worker")

LOOK_S = 1.0
"""Seconds between two looks at whether the event loop lives."""


@dataclass(frozen=True)
class BlendedEnvironment:
    """Another environment that plays some of the tasks: its name among them, its id and what it is made with. Its own reward is the total,
    with that of its own `rewards`. limits: what of the rollout's limits is another there. success: the part of its reward that is success.

    Example: `BlendedEnvironment("sums", "burnish/Arithmetic-v0", {"max_operand": 20}, limits={"max_turns": 1})`.
    """

    name: str
    id: str
    args: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[RewardConfig, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    success: str = ENV_PART


@dataclass(frozen=True)
class WorkerSetup:
    """What a rollout worker is built from: the policy to start with, the environment, the rewards, and the limits.

    plugins: files, and modules: importable names or paths of `.py` files, whose decorators register environments and rewards. seed: of all
    sampling. blended: further environments, which play the tasks that name them. folder: where the relative paths of all of it begin, for a
    process that Ray may have started elsewhere; empty is where that one runs. cancel_s: seconds that episodes in flight may take to end
    when they are cancelled, beside what their environments may take to close, and the engine to close. success: the part of the reward
    that success is measured by; the labels of an episode are those of who gives it. parcel: the files that nodes without the folder get.

    Example: `WorkerSetup(Path("models/nano"), "burnish/Arithmetic-v0")`.
    """

    model: Path
    environment: str
    environment_args: Mapping[str, Any] = field(default_factory=dict)
    environment_weight: float = 1.0
    rewards: tuple[RewardConfig, ...] = ()
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    plugins: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    seed: int = 0
    blended: tuple[BlendedEnvironment, ...] = ()
    folder: str = ""
    cancel_s: float = 60.0
    success: str = ""
    parcel: Parcel | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts since the worker was made: episodes finished, tokens sampled, and episodes in flight or waiting now.

    calls: of the engine, of environments and of rewards that have ended, those of an episode that is tried again included. under_way: how
    many of each are under way now.
    """

    episodes: int
    tokens: int
    pending: int
    calls: int = 0
    under_way: Mapping[Part, int] = field(default_factory=dict)


@dataclass
class _Round:
    """What was submitted since the last `cancel`. What one that was cancelled still brings to an end belongs to nobody.

    groups: finished ones, and what broke a collection. pending: episodes in flight or waiting.
    """

    groups: queue.SimpleQueue[EpisodeGroup | BaseException] = field(default_factory=queue.SimpleQueue)
    pending: int = 0


def episode_parts(setup: WorkerSetup, make: Callable[[Renderer], Engine], threads: Executor) -> EpisodeParts:
    """What the episodes of one process share. make: the engine, once everything else of the setup is known to be there.

    Raises ValueError when the setup cannot be built.
    """
    for plugin in setup.plugins:
        load_plugin(plugin)
    for module in setup.modules:
        import_module(module, "environment")
    tokenizer = load_tokenizer(setup.model)
    renderer = TemplateRenderer(tokenizer, setup.rollout.template_args)
    tool_parser = parser_of_template(tokenizer.chat_template) if setup.rollout.describe_tools else None
    rubric = make_rubric(setup.rewards, setup.environment_weight, setup.rollout.retries)
    engine = make(renderer)
    own = EpisodeParts(
        setup.environment, setup.environment_args, engine, renderer, rubric, setup.rollout, threads, setup.seed, tool_parser,
        success=setup.success,
    )  # fmt: skip
    return replace(own, others={one.name: _other(own, one) for one in setup.blended})


def _other(own: EpisodeParts, one: BlendedEnvironment) -> EpisodeParts:
    """What the episodes of another environment share: the engine and everything around it, but not the rewards."""
    rubric = make_rubric(one.rewards, 1.0, own.limits.retries)
    limits = own.limits.model_copy(update=dict(one.limits))
    return replace(own, env_id=one.id, env_args=one.args, rubric=rubric, limits=limits, success=one.success)


class RolloutWorker:
    """Runs episodes in the background: `submit` tasks, fetch finished groups with `sample`.

    name: for failures and logs. life: an id of this worker alone, which one that takes its place does not have. on_episode: called on
    the worker's event loop for every finished episode. engine: instead of the one the setup describes, for tests. actor, node: Ray's ids of
    where it is, "" outside of Ray. Raises ValueError when the setup cannot be built.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        name: str,
        on_episode: Callable[[Episode], None] | None = None,
        engine: Engine | None = None,
        actor: str = "",
        node: str = "",
    ) -> None:
        self.name = name
        self.life = uuid4().hex
        self._on_episode = on_episode
        self._finish = setup.engine.on_new_weights == "finish"
        self._loop = asyncio.new_event_loop()
        self._end = ""  # why the loop did, once it has
        self._thread = threading.Thread(target=self._run_loop, name=f"{name}-loop", daemon=True)
        self._thread.start()
        threads = Daemons(f"{name}-env")  # one for each call under way, so that one that hangs holds up no other
        parts = episode_parts(setup, lambda renderer: engine or make_engine(setup.engine, setup.model, name), threads)
        self._parts = replace(parts, actor=actor, node=node)
        self.engine = self._parts.engine
        self._round = _Round()
        self._running: set[asyncio.Task[None]] = set()
        self._concurrency = setup.rollout.concurrency
        self._slots = asyncio.Semaphore(self._concurrency)
        self._episodes = self._tokens = 0
        self._close_s = setup.cancel_s
        self._cancel_s = setup.cancel_s + max(parts.close_s for parts in (self._parts, *self._parts.others.values()))

    def submit(
        self, tasks: Sequence[Task], group_size: int, temperature: float, version: int | None = None, life: str | None = None
    ) -> None:
        """Start `group_size` episodes of every task; returns at once.

        version, life: the weights they are meant for, and the worker; raises StaleEngine, and starts nothing, when the engine holds others
        or this is another. Raises LoopEnded as `sample` does.
        """
        self._check_meant(version, life)
        self._check_loop()
        this = self._round
        this.pending += len(tasks) * group_size
        asyncio.run_coroutine_threadsafe(self._collect(this, list(tasks), group_size, temperature), self._loop)

    def sample(self, wait_s: float, life: str | None = None) -> list[EpisodeGroup]:
        """The groups finished since the last call, waiting up to `wait_s` seconds for the first one. Raises what broke the collection,
        StaleEngine as `submit` does, and HungEnvironments or LoopEnded where this process can play no more and should be
        replaced."""
        self._check_meant(None, life)
        self._parts.left.check(self._concurrency)
        groups_of = self._round.groups
        try:
            found = [groups_of.get(timeout=wait_s)]
        except queue.Empty:
            self._check_loop()
            return []
        while not groups_of.empty():
            found.append(groups_of.get_nowait())
        groups = []
        for item in found:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, BaseException):  # which would end whoever samples, and say nothing
                raise RuntimeError(f"{self.name}: {short_traceback(item)}") from item
            groups.append(item)
        return groups

    def cancel(self) -> None:
        """Stop all episodes in flight, wait until their environments have closed, and forget finished groups that were not fetched.

        Raises TimeoutError when that takes too long; what was in flight is nobody's then, too.
        """
        self._round = _Round()
        self._call(self._ended(), self._cancel_s)

    def update_weights(self, weights: Weights, timeout_s: float) -> SyncReceipt:
        """Give the engine new weights, once its answers under way have ended or in the middle of them, as its config says; see
        `sync_weights`."""
        receipt = self._call(sync_weights(self.engine, weights, self._finish), timeout_s)
        return replace(receipt, busy=self._parts.meter.read(), life=self.life)

    def score(self, sequences: Sequence[Sequence[int]], version: int | None = None, life: str | None = None) -> list[Float32]:
        """The engine's log-probabilities; see `Engine.score`, whose own deadline holds. Raises StaleEngine as `submit` does."""
        self._check_meant(version, life)
        return self._call(self.engine.score(sequences), None)

    def _check_meant(self, version: int | None, life: str | None) -> None:
        if life is not None and self.life != life:
            raise StaleEngine(f"{self.name} was started anew, and has nothing of what it was given before")
        if version is not None and self.engine.weight_version != version:
            raise StaleEngine(f"{self.name} holds weights {self.engine.weight_version}, and work under {version} was asked for")

    @property
    def weight_version(self) -> int:
        return self.engine.weight_version

    @property
    def progress(self) -> Progress:
        meter = self._parts.meter
        return Progress(self._episodes, self._tokens, self._round.pending, meter.ended, meter.under_way)

    def close(self) -> None:
        """Cancel what runs and release engine and event loop. Raises LoopEnded when that has ended before; the engine is released all the
        same."""
        try:
            self.cancel()
        finally:
            self._close_engine()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10.0)

    def _close_engine(self) -> None:
        try:
            self._call(self.engine.close(), self._close_s)
        except LoopEnded:  # its process, or its thread, lives on, and nobody else knows of it
            asyncio.run(asyncio.wait_for(self.engine.close(), self._close_s))

    def _run_loop(self) -> None:
        why = "it was stopped"
        try:
            self._loop.run_forever()
        except BaseException as error:  # a task's SystemExit, say, which asyncio passes on to whoever runs the loop
            log.critical("%s: its event loop ended", self.name, exc_info=error)
            why = short_traceback(error)
        finally:
            self._end = why

    def _check_loop(self) -> None:
        if not self._thread.is_alive():
            raise LoopEnded(f"{self.name} plays no more episodes, its event loop has ended: {self._end}")

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """What the work returns on the loop. Raises TimeoutError, and LoopEnded when the loop does not live to see it."""
        if not self._thread.is_alive():
            work.close()
            self._check_loop()
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while True:
            left = deadline - time.monotonic()
            try:
                return running.result(max(0.0, min(LOOK_S, left)))
            except TimeoutError:
                if running.done():
                    return running.result()
                if left <= LOOK_S:
                    raise
            self._check_loop()

    async def _ended(self) -> None:
        """Cancel every collection, and wait until each has closed its environments."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await all_ended(running)

    async def _collect(self, this_round: _Round, tasks: list[Task], group_size: int, temperature: float) -> None:
        this = asyncio.current_task()
        assert this is not None
        self._running.add(this)
        try:
            async for group in collect(self._parts, tasks, group_size, temperature, partial(self._note, this_round), self._slots):
                this_round.groups.put(group)
        except BaseException as error:
            if is_asked_for(error):
                raise
            this_round.groups.put(error)
        finally:
            self._running.discard(this)

    def _note(self, this_round: _Round, episode: Episode) -> None:
        self._episodes += 1
        this_round.pending -= 1
        self._tokens += int(episode.metrics.get("tokens", 0.0))
        if self._on_episode is not None:
            self._on_episode(episode)
