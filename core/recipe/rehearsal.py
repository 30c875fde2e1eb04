"""One episode before the run: the recipe's environment, rewards and services at work, with made-up replies in the place of a model.

What only shows when parts meet is known before a model is loaded: that the prompt fits the context, that the services' functions load and
answer, that rewards can judge what the environment gives, and that the part called success exists and lies in [0, 1].
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

from burnish.envs.failures import Failure
from burnish.envs.types import EpisodeGroup, Reward, Task
from burnish.inspector.text import number
from burnish.recipe.resolve import ResolvedRun
from burnish.rewards.calling.threads import start
from burnish.rollout.collect import collect
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.renderers import Renderer
from burnish.rollout.worker import episode_parts
from burnish.trainer.data.task_files import TaskFiles, read_task_files
from burnish.trainer.data.tasks import held_out_tasks
from burnish.trainer.evaluation.statistics import SuccessWatch
from burnish.trainer.models.finding import find_model

SAID = "yes"
"""What the made-up policy says in every turn."""
TURNS = 8
"""Turns that it takes at most: environments that nothing ends are played no longer."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was seen: the task, the tokens of its prompt, the turns that were taken, and the reward. notes: what will work, but not well."""

    task: str
    prompt_tokens: int
    turns: int
    reward: Reward
    notes: tuple[str, ...]

    @property
    def line(self) -> str:
        """Example: `rehearsed task heldout-7: prompt 61 tokens, 1 turn, reward -0.1 (env 0, brief -0.1)`."""
        parts = ", ".join(f"{name} {number(value)}" for name, value in self.reward.parts.items())
        turns = f"{self.turns} turn{'s' if self.turns != 1 else ''}"
        return f"rehearsed task {self.task}: prompt {self.prompt_tokens} tokens, {turns}, reward {number(self.reward.total)} ({parts})"


def rehearse(run: ResolvedRun, addresses: Mapping[str, str]) -> Rehearsal:
    """Play one held-out task, or the longest of `[tasks]`, as a run will, and judge it. addresses: of the services, which are asked once.

    Every turn the policy says `SAID`, whatever it is asked. Where rewards compare attempts, there are as many as they need.

    Raises ValueError naming what does not fit: a prompt beyond `engine.max_context`, an environment, reward or service that fails, a
    success part that is missing or outside [0, 1].
    """
    model = find_model(run.model, need_weights=False)
    limits = run.rollout.model_copy(update={"max_turns": min(run.rollout.max_turns, TURNS)})
    setup = replace(run.worker_setup(model, addresses, seed=run.seed), rollout=limits)
    engine: ScriptedEngine

    def make(renderer: Renderer) -> ScriptedEngine:
        nonlocal engine
        engine = ScriptedEngine(_always(renderer), name="the rehearsal", max_context=run.engine.max_context)
        return engine

    parts = episode_parts(setup, make, _Daemons())
    group = asyncio.run(_played(parts, _task(run), limits.temperature))
    watch = SuccessWatch(run.success)
    for episode in group.episodes:
        if isinstance(episode.outcome, Failure):
            raise ValueError(f"the rehearsal of one episode failed: {episode.outcome}")
        watch.value(episode, episode.outcome)
    watch.check()
    first, prompt = group.episodes[0], len(engine.requests[0].prompt_token_ids)
    assert isinstance(first.outcome, Reward)
    return Rehearsal(first.task.id, prompt, len(first.turns), first.outcome, tuple(_notes(run, prompt)))


def _task(run: ResolvedRun) -> Task:
    """The first task of an evaluation; of files, the one with the longest prompt, to which an environment may add."""
    if run.tasks.files is None:
        return held_out_tasks(run.evaluation.seeds, 1)[0]
    files: TaskFiles = read_task_files(run.tasks.files)
    row = max((*files.held_out, *files.train), key=lambda row: sum(len(message.text) for message in row.messages))
    return Task(row.id, 0, row.messages, row.data)


def _always(renderer: Renderer) -> Callable[[GenerateRequest], list[int]]:
    return lambda request: [*renderer.encode(SAID), *request.stop_token_ids[:1]]


async def _played(parts: EpisodeParts, task: Task, temperature: float) -> EpisodeGroup:
    async for group in collect(parts, [task], parts.rubric.min_members, temperature):
        return group
    raise AssertionError("one task makes one group")


def _notes(run: ResolvedRun, prompt: int) -> Iterator[str]:
    rollout, context = run.rollout, run.engine.max_context
    if prompt + rollout.sampled_tokens > context:
        yield (
            f"a prompt of {prompt} tokens and {rollout.max_turns} x {rollout.max_tokens_per_turn} sampled ones are more than "
            f"engine.max_context = {context}: an episode that says that much is cut short, and rewarded as it is then"
        )


class _Daemons(Executor):
    """Threads that a call which hangs does not keep the process alive with, unlike those of `concurrent.futures`."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        start("burnish-rehearsal", job)
        return future
