"""One episode before the run: the recipe's environment, rewards and services at work, with made-up replies in the place of a model.

What only shows when parts meet is known before a model is loaded: that the prompt fits the context, that the services' functions load and
answer, that rewards can judge what the environment gives, and that the part called success exists and lies in [0, 1].
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from burnish.envs.failures import Failure
from burnish.envs.registry import look_here
from burnish.envs.types import EpisodeGroup, Reward, Task
from burnish.inspector.text import number
from burnish.recipe.load import config_from_record
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.rewards.calling.threads import Daemons
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
    """What was seen: the task, the tokens of its prompt, the turns taken, the reward and its parts. notes: what will work, but not well."""

    task: str
    prompt_tokens: int
    turns: int
    reward: float
    parts: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def line(self) -> str:
        """Example: `rehearsed task heldout-7: prompt 61 tokens, 1 turn, reward -0.1 (env 0, brief -0.1)`."""
        parts = ", ".join(f"{name} {number(value)}" for name, value in self.parts.items())
        turns = f"{self.turns} turn{'s' if self.turns != 1 else ''}"
        return f"rehearsed task {self.task}: prompt {self.prompt_tokens} tokens, {turns}, reward {number(self.reward)} ({parts})"


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

    parts = episode_parts(setup, make, Daemons("rehearsal"))
    group = asyncio.run(_played(parts, first_task(run), limits.temperature))
    watch = SuccessWatch(run.success)
    for episode in group.episodes:
        if isinstance(episode.outcome, Failure):
            raise ValueError(f"the rehearsal of one episode failed: {episode.outcome}")
        watch.value(episode, episode.outcome)
    watch.check()
    first, prompt = group.episodes[0], len(engine.requests[0].prompt_token_ids)
    assert isinstance(first.outcome, Reward)
    reward = first.outcome
    return Rehearsal(first.task.id, prompt, len(first.turns), reward.total, dict(reward.parts), tuple(_notes(run, prompt)))


def rehearse_apart(run: ResolvedRun, addresses: Mapping[str, str]) -> Rehearsal:
    """`rehearse` in a process of its own, with which everything ends that environments, rewards and their clients leave behind.

    Raises ValueError as `rehearse` does, RuntimeError when the process ends without a result, TimeoutError when it does not end.
    """
    # Without the folder one starts in: one called "burnish" in it is not this burnish. What is imported later looks there (`look_here`).
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path not in ("", os.getcwd()))}
    limit_s = run.limits.rehearse_s + (run.rollout.retries + 1) * 3 * run.rollout.episode_timeout_s
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__], input=json.dumps([run.record, dict(addresses)]), capture_output=True, text=True,
            timeout=limit_s, env=place, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"the rehearsal of one episode did not end within {limit_s:.0f} s") from None
    if done.returncode:
        raise RuntimeError(f"the rehearsal of one episode ended with code {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if "refused" in said:
        raise ValueError(said["refused"])
    return Rehearsal(**{**said, "notes": tuple(said["notes"])})


def _rehearse_order() -> None:
    """What that process does: read a recipe and addresses from stdin, and print what was seen, or why it does not fit, on stdout."""
    record, addresses = json.load(sys.stdin)
    look_here()  # now that this program is loaded: plug-ins may import what lies beside them
    try:
        said = asdict(rehearse(resolve(config_from_record(record)), addresses))
    except ValueError as error:
        said = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(said) + "\n")
    sys.stdout.flush()
    os._exit(0)  # whatever still runs in its threads is waited for by nobody


def first_task(run: ResolvedRun) -> Task:
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


if __name__ == "__main__":
    _rehearse_order()
