"""A word before the money is spent: a few hundred episodes of the start policy, over the real pieces of a recipe, and what they say.

In order: groups of training tasks are sampled, as a step would; some tasks are played greedily; some episodes are played and judged again;
one update is made and its weights are sent out, to know what a step takes. Nothing of it is kept but the numbers.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from burnish.cluster import uninterrupted
from burnish.envs.types import Episode, EpisodeGroup, Reward, Task
from burnish.recipe.plan import BETWEEN, START_S, PhasePlan, Plan, make_plan
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.replay import can_replay, replay
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import Mode
from burnish.run.display import StepBar
from burnish.run.folder import RunFolder, create_run
from burnish.session import Session, parts_of, session_over
from burnish.trainer.evaluation.advice import Advice, advice
from burnish.trainer.evaluation.outlook import AskedAgain, Outlook, asked_again, outlook
from burnish.trainer.evaluation.statistics import SuccessWatch
from burnish.trainer.evaluation.step_cost import StepCost, Update, step_cost
from burnish.trainer.objectives.shaping import shaped, without_cut_short
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.playing import run_tasks
from burnish.trainer.schedule.groups import why_not
from burnish.trainer.updates import credit

EPISODES = 256
"""Sampled episodes unless more or fewer are asked for: with groups of 8, 32 tasks, whose share of success is known to about 17 points."""
AGAIN = 64
"""Episodes that are judged again at most: when none of 64 changes, fewer than 5 % do, at 95 % (the rule of three)."""
GREEDY = 4
"""One greedy episode for so many sampled ones, and at least one for each task."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found. seconds: it took itself. recipe_s: what the whole recipe is expected to take, None when a part is not known.
    memory_mb: expected by role; peak_mb: what each kind of process had at most, as the system counts it."""

    recipe: str
    model: str
    seen: Outlook
    again: AskedAgain
    update: Update | None
    cost: StepCost
    recipe_s: float | None
    memory_mb: Mapping[str, int]
    peak_mb: Mapping[str, int]
    lines: Sequence[Advice]
    seconds: float

    def to_row(self) -> dict[str, Any]:
        """Everything as JSON takes it, the seconds of a step among it."""
        row = asdict(self)
        row["cost"]["seconds"] = self.cost.seconds
        return {"schema": 1, **row}


def probe(recipe: ResolvedRun, run_dir: Path | None, episodes: int, console: Console) -> tuple[Probe, RunFolder]:
    """Play, and write `probe.json` and the transcripts into a run folder made for it.

    When it is interrupted, nothing is left: no process, no folder. Raises ValueError for what the user can put right, a recipe without
    `[rft]` among it, and what fleet and learner raise.
    """
    table = recipe.rft
    if table is None:
        raise ValueError(f"recipe {recipe.name!r} has no [rft]: a probe says what reinforcement would find; add the table")
    plan, started = make_plan(recipe, need_weights=True), time.monotonic()
    recipe = recipe.beginning_with(table.name)
    with _folder_unless_interrupted(recipe, run_dir) as folder:
        with ExitStack() as stack:
            addresses = stack.enter_context(parts_of(recipe, folder.path / "logs"))
            with console.status("starting engines and learner"):
                session = stack.enter_context(session_over(recipe, addresses, folder.seeds()))
            played = _play(session, table, episodes, console)
            _keep(folder, played)
            with console.status("playing episodes again"):
                again = _again(session, addresses, played.groups)
            with console.status("making one update"):
                learned = [_learned_from(session, group) for group in played.groups]
                update = _update(session, table, learned)
            peaks = _peak_memory(session)
        seen = outlook(played.groups, played.greedy, recipe.success, learned, session.loop.settings.declared)
        cost = step_cost(table, seen.teaching, played.episodes_per_second, update)
        earlier = recipe.phases[: [phase.table for phase in recipe.phases].index(table)]
        lines = advice(seen, again, table, _weights(recipe), [phase.name for phase in earlier])
        whole_s = _recipe_seconds(plan, seen.teaching, played.episodes_per_second, update)
        took = time.monotonic() - started
        found = Probe(recipe.name, recipe.model, seen, again, update, cost, whole_s, plan.memory_mb, peaks, tuple(lines), took)
        folder.path.joinpath("probe.json").write_text(json.dumps(found.to_row(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return found, folder


@dataclass(frozen=True)
class _Played:
    """What was played, and the pace of the sampled part."""

    groups: Sequence[EpisodeGroup]
    greedy: Sequence[Episode]
    episodes_per_second: float


@contextmanager
def _folder_unless_interrupted(recipe: ResolvedRun, run_dir: Path | None) -> Iterator[RunFolder]:
    """A run folder of its own, removed again when the block is interrupted; after an error it stays, with the logs that say why."""
    name = f"{recipe.name}-probe"
    folder = create_run(replace(recipe, name=name, record={**recipe.record, "name": name}), run_dir=run_dir)
    try:
        yield folder
    except KeyboardInterrupt:
        with uninterrupted():
            shutil.rmtree(folder.path)
        raise
    except Exception as error:
        error.add_note(f"the logs are in {folder.path}")
        raise


def _play(session: Session, table: RFTPhaseConfig, episodes: int, console: Console) -> _Played:
    """Groups of the first training tasks, sampled; then single episodes of those and some more, greedy."""
    size, fleet = table.group_size, session.algo.fleet
    tasks = session.loop.stream(0, max(2, round(episodes / size)))
    more = session.loop.stream(0, max(len(tasks), episodes // GREEDY))
    if all(task.environment for task in tasks):
        what = f"none of the first {len(tasks)} tasks is of the recipe's own environment, whose success a probe tells"
        raise ValueError(f"{what}: raise --episodes, or lower the percentages of rft.blend")
    watch = SuccessWatch(session.recipe.success)

    def play(title: str, chosen: Sequence[Task], group_size: int, temperature: float) -> list[EpisodeGroup]:
        groups = {}
        with StepBar(console, title, len(chosen)) as bar:
            for group in run_tasks(fleet, chosen, group_size, temperature):
                groups[group.task.id] = group
                for episode in [] if group.task.environment else group.rewarded:  # of a blended environment, nothing is called success
                    watch.value(episode, cast(Reward, episode.reward))  # a success part that is misspelt is said at once
                bar.advance("")
        return [groups[task.id] for task in chosen]

    started = time.monotonic()
    groups = play("probe, sampled", tasks, size, session.recipe.rollout.temperature)
    pace = len(tasks) * size / (time.monotonic() - started)
    greedy = play("probe, greedy", more, 1, 0.0)
    return _Played(groups, [episode for group in greedy for episode in group.episodes], pace)


def _keep(folder: RunFolder, played: _Played) -> None:
    """Store the episodes: `burnish rollouts` and `burnish inspect` show them."""
    kept: dict[Mode, list[Episode]] = {"sampled": [episode for group in played.groups for episode in group.episodes]}
    kept["greedy"] = list(played.greedy)
    with EpisodeStore(folder.episodes, folder.path.name, folder.transcripts) as store:
        for mode, episodes in kept.items():
            store.put(Moment("base", 0, "train", mode), episodes)


def _again(session: Session, addresses: Mapping[str, str], groups: Sequence[EpisodeGroup]) -> AskedAgain:
    """Up to `AGAIN` episodes, in whole groups, played and judged again."""
    chosen: list[EpisodeGroup] = []
    for group in filter(can_replay, groups):
        if sum(len(one.episodes) for one in chosen) + len(group.episodes) <= max(AGAIN, len(group.episodes)):
            chosen.append(group)
    if not chosen:
        return AskedAgain()
    setup = session.recipe.worker_setup(session.base, addresses, session.seeds["rft.sampling"])
    return asked_again(replay(setup, chosen, session.recipe.limits.stall_s))


def _learned_from(session: Session, group: EpisodeGroup) -> EpisodeGroup:
    """The group as a step of the loop would learn from it."""
    overlong = session.loop.updates.asked.overlong
    return without_cut_short(shaped(group, overlong), overlong)[0]


def _update(session: Session, table: RFTPhaseConfig, learned: Sequence[EpisodeGroup]) -> Update | None:
    """One update over the groups that teach, at most those of a step, and its weights on their way; None when no group teaches."""
    loop, limits = session.loop, session.recipe.rollout
    keep, declared = table.equal_groups == "keep", loop.settings.declared
    kept = [group for group in learned if why_not(group, limits, keep, declared) is None][: table.groups_per_step]
    if not kept:
        return None
    phase = session.recipe.phase(table.name)
    session.learner.begin_phase(phase.optimizer, phase.critic)  # where the reference is kept, if there is one
    marks = [time.monotonic()]
    score = partial(session.learner.score, temperature=limits.temperature)
    batch, *_ = credit(tuple(kept), loop.updates.advantage, loop.updates.asked, table, score)
    marks.append(time.monotonic())
    measured = session.forward_backward(batch)
    marks.append(time.monotonic())
    session.step(phase_step=0 if phase.critic is None else phase.critic.warmup_updates)  # the first in which the policy learns, too
    marks.append(time.monotonic())
    session.sync()
    marks.append(time.monotonic())
    score_s, pass_s, step_s, sync_s = (after - before for before, after in pairwise(marks))
    return Update(len(kept), measured.packed_tokens, score_s, pass_s, step_s, sync_s)


def _peak_memory(session: Session) -> dict[str, int]:
    """The most that the processes of each role had resident, in MB. Ask before they end."""
    import ray

    learners = session.learner.foreach_learner(peak_mb)
    engines = ray.get(
        [runner.apply.remote(peak_mb) for runner in session.algo.fleet.runners.values()], timeout=session.recipe.limits.answer_s
    )
    return {"learner": sum(learners), "engine": sum(engines)}


def peak_mb(_: Any = None) -> int:
    """What the process that calls this had resident at most, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)  # Linux counts in KiB


def _weights(recipe: ResolvedRun) -> dict[str, float]:
    """What each part of the reward counts."""
    return {"env": recipe.environment.weight, **{entry.name: entry.weight for entry in recipe.rewards}}


def _recipe_seconds(plan: Plan, teaching: float, episodes_per_second: float, update: Update | None) -> float | None:
    """Seconds of all that a plan has: reinforcement and evaluations at the pace that was measured, the rest at most. None when a part of it
    is not known."""
    tables = {table.name: table for table in plan.run.reinforced}

    def seconds(phase: PhasePlan) -> float | None:
        if phase.name in tables:
            table = tables[phase.name]
            step_s = step_cost(table, teaching, episodes_per_second, update).seconds
            return None if step_s is None else min(table.steps * step_s, phase.limit_s)
        return phase.episodes / episodes_per_second if phase.name in (BETWEEN, "evaluation") else phase.seconds

    found = [seconds(phase) for phase in plan.phases]
    known = [one for one in found if one is not None]
    return START_S + sum(known) if len(known) == len(found) else None
