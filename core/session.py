"""A training session: the parts of a recipe put to work, for a loop of one's own.

    with session("recipes/nano-inspection.toml") as s:
        for _ in range(60):
            batch = GroupBatch(tuple(s.rollouts(24)))
            s.forward_backward(batch.train(my_advantages(batch)), Objective(my_loss))
            s.step()
            s.sync()
        print(s.evaluate())

`burnish run` drives the same session through the recipe's phases (`run/pipeline.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish.cluster import (
    Process,
    check_services,
    kill_processes,
    on_ray,
    ray_session,
    request_resources,
    services_of,
    this_process,
    uninterrupted,
    watched_of,
    without_line,
)
from burnish.envs.types import Episode, EpisodeGroup, Task
from burnish.reach import check_reach
from burnish.recipe.load import load_config
from burnish.recipe.rehearsal import Rehearsal, rehearse, rehearse_apart
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.recipe.seeds import data_seed, derive_seeds, phase_seed
from burnish.rollout.store.records import EvaluationResult, Mode
from burnish.rollout.transport.parcel import Parcel, sources_of
from burnish.rollout.weights import SyncReceipt
from burnish.rollout.worker import WorkerSetup
from burnish.trainer.batch import TokenBatch
from burnish.trainer.data.config import Making
from burnish.trainer.data.examples import Say, silent
from burnish.trainer.data.task_files import TaskFiles, read_task_files
from burnish.trainer.data.tasks import held_out_tasks
from burnish.trainer.demonstrations import Demonstrations
from burnish.trainer.evaluation.evaluate import evaluate
from burnish.trainer.learner.probe import check_saved, probe_loss
from burnish.trainer.loop import PolicyLoop
from burnish.trainer.models.finding import find_model, verified_model
from burnish.trainer.models.folder import Origin, write_model_folder
from burnish.trainer.models.importing import no_progress_bars
from burnish.trainer.objectives.measures import Measured
from burnish.trainer.objectives.objective import Objective
from burnish.trainer.phases.common import PhaseConfig
from burnish.trainer.phases.rft import RFTPhaseConfig, demonstrations_of, lay_out_replay
from burnish.trainer.playing import Fleet, run_tasks


@dataclass
class Session:
    """Engines that play the recipe's environment, and a learner of its model, both under way.

    recipe: what was asked for. base: the model folder it started from. algo: the RLlib algorithm that holds fleet, learner and loop.
    files: the tasks of `[tasks]`, None where seeds make them. position: how many training tasks were taken. learners: the learner's
    processes.
    """

    recipe: ResolvedRun
    base: Path
    seeds: Mapping[str, int]
    algo: Any
    files: TaskFiles | None = None
    position: int = 0
    learners: Sequence[Process] = ()

    @property
    def loop(self) -> PolicyLoop:
        """burnish's own policy loop over this session: `session.loop.step()` is one step of `burnish run`."""
        loop: PolicyLoop = self.algo.loop
        return loop

    @property
    def learner(self) -> Any:
        """The learner's primitives (`trainer.learner.learner.Learner`), in a process of their own."""
        return self.algo.learner_group

    @property
    def version(self) -> int:
        """How many updates made the learner's weights."""
        return int(self.learner.version)

    @property
    def objective(self) -> Objective:
        """The objective that the recipe names."""
        return self.loop.objective

    @property
    def held_out(self) -> list[Task]:
        """The tasks that every evaluation measures."""
        table = self.recipe.evaluation
        return self.files.held_out_tasks(table.tasks) if self.files else held_out_tasks(table.seeds, table.tasks)

    def rollouts(self, tasks: int, group_size: int | None = None) -> list[EpisodeGroup]:
        """Play the next `tasks` training tasks, `group_size` episodes each (the recipe's, unless given), under the engines' weights.

        The groups in the order of their tasks. An episode that failed is in its group with a `Failure` as outcome. Raises what the fleet
        raises when nothing finishes for too long.
        """
        size = group_size or self.loop.settings.phase.group_size
        self.loop.settle()
        chosen = self.loop.stream(self.position, tasks)
        self.position += len(chosen)
        groups = {group.task.id: group for group in run_tasks(self.algo.fleet, chosen, size, self.recipe.rollout.temperature)}
        return [groups[task.id] for task in chosen]

    def forward_backward(self, batch: TokenBatch, objective: Objective | None = None) -> Measured:
        """Add the gradient of the objective (the recipe's, unless given) over the batch; see `Learner.forward_backward`.

        A loss given as a function must be importable in the learner's process, or defined in the program that is run.
        """
        measured: Measured = self.learner.forward_backward(batch, objective or self.objective)
        return measured

    def score(self, batch: TokenBatch, temperature: float = 1.0) -> Measured:
        """The learner's log-probabilities of the batch's trained tokens, without a gradient."""
        measured: Measured = self.learner.score(batch, temperature)
        return measured

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        """Apply the gradients since the last step, at `scale` times the learning rate; see `Learner.step`. The engines keep their weights
        until `sync`."""
        metrics: dict[str, float] = self.learner.step(scale, phase_step)
        return metrics

    def sync(self) -> list[SyncReceipt]:
        """Give the learner's weights to every engine, and prove that they arrived; see `PolicyLoop.sync`."""
        return self.loop.sync()

    def evaluate(
        self, mode: Mode = "sampled", on_group: Callable[[EpisodeGroup], None] | None = None
    ) -> tuple[EvaluationResult, list[Episode]]:
        """Play the held-out tasks once each, under the engines' weights. Raises SyncProofError when those are not the learner's."""
        self.loop.settle()
        return _evaluated(self, self.algo.fleet, self.held_out, mode, on_group)

    def measure(
        self, tasks: int, mode: Mode = "sampled", on_group: Callable[[EpisodeGroup], None] | None = None
    ) -> tuple[EvaluationResult, list[Episode]]:
        """Play the first `tasks` held-out tasks once each between two steps of the loop, beside what it has under way where its schedule
        allows that (`PolicyLoop.between_steps`). Raises SyncProofError as `evaluate` does."""
        return _evaluated(self, self.loop.between_steps(), self.held_out[:tasks], mode, on_group)

    def scale(self, engines: int) -> None:
        """Have so many engines from now on: others join while tasks are played, when the cluster has room for them, or those that came
        last leave once they have played what they have. Raises ValueError for less than one."""
        self.algo.fleet.scale(engines)

    def restart_learner(self) -> None:
        """Put a learner of the base model in the place of one that died or hangs. What was under way in the fleet is dropped.

        The engines keep their weights until the next `sync`.
        """
        self.learner.shutdown()
        kill_processes(self.learners, self.recipe.limits.kill_s)
        self.algo.fleet.stop()
        self.algo.learner_group = self.loop.learner = self.algo.config.build_learner_group()
        self.learners = self.learner.foreach_learner(this_process)

    def save_model(self, folder: Path, origin: Origin | str) -> None:
        """Write the learner's weights as a model folder that `burnish serve` and `model = "…"` take, and score a probe with it.

        origin: what its manifest says, beside the recipe's `template_args`; a name is enough for a loop of one's own. With no parents
        given, the base is the parent. The folder must be new. Raises SavedModelError when the saved model does not score as the learner
        does.
        """
        if isinstance(origin, str):
            origin = Origin(name=origin, stage="rft", source="a loop of one's own")
        weights = self.learner.weights()
        probed, *_ = self.learner.foreach_learner(probe_loss)
        write_model_folder(weights, self.base, folder, replace(origin, template_args=self.recipe.rollout.template_args))
        with no_progress_bars():
            check_saved(folder, probed)


def _evaluated(
    session: Session, fleet: Fleet, tasks: Sequence[Task], mode: Mode, on_group: Callable[[EpisodeGroup], None] | None
) -> tuple[EvaluationResult, list[Episode]]:
    recipe, budget = session.recipe, session.recipe.evaluation.error_budget
    return evaluate(fleet, tasks, mode, recipe.rollout.temperature, recipe.success, on_group, budget, session.version)


@contextmanager
def session(recipe: str | Path | ResolvedRun, overrides: Sequence[str] = (), logs: Path | None = None) -> Iterator[Session]:
    """Start what a recipe names: its services, Ray, engines and learner; end them all on the way out, whatever happened.

    recipe: the path of a TOML file, with overrides such as `"rft.lr=1e-5"`, or one that is resolved. logs: where services write their
    output, a folder that is removed afterwards unless given. Raises ValueError for what the user can put right.
    """
    run = recipe if isinstance(recipe, ResolvedRun) else resolve(load_config(recipe, overrides))
    if run.rft is not None:
        run = run.beginning_with(run.rft.name)
    seeds = derive_seeds(run.seed)
    with tempfile.TemporaryDirectory(prefix="burnish-session-") as scratch:
        shown = _demonstrations(run, seeds, Path(scratch) / "replay")
        with parts_of(run, logs or Path(scratch)) as addresses, session_over(run, addresses, seeds) as started:
            if run.rft is not None and shown is not None:
                started.loop.take(run.rft, shown)
            yield started


def _demonstrations(run: ResolvedRun, seeds: Mapping[str, int], folder: Path) -> Demonstrations | None:
    """What the recipe's reinforcement learns beside its episodes, laid out in a folder."""
    if run.rft is None or run.rft.replay is None:
        return None
    return demonstrations_of(run.rft, lay_out_replay(run.rft, making_of(run, run.rft, seeds), folder, silent))


def making_of(run: ResolvedRun, table: PhaseConfig, seeds: Mapping[str, int]) -> Making:
    """What the examples of a phase are made with."""
    rows = table.supervised_rows
    count = 1 if rows is None else rows.examples
    seed, order = data_seed(seeds, table.name, run.tasks.train_seeds, count), phase_seed(seeds, f"{table.name}.order")
    return Making(find_model(run.model), run.engine.max_context, run.rollout.template_args, seed, order)


@contextmanager
def parts_of(recipe: ResolvedRun, logs: Path, say: Say = silent, shown: Path | None = None) -> Iterator[Mapping[str, str]]:
    """The recipe's services and Ray, and the services' addresses by name, once an episode has been rehearsed with them.

    say: told how that went. shown: the folder of the run that they are of, which Ray's dashboard shows (`ray_session`). Raises ValueError
    naming a service that does not answer, or that nodes with engines do not reach, or what does not fit (see `rehearse`).
    """
    by_name = on_ray(recipe)
    with services_of(recipe.services, logs) as addresses:
        if not by_name:
            _try(recipe, addresses, rehearse_apart, say)
        with ray_session(recipe.placement, shown, watched_of(recipe, addresses) if shown is not None else None):
            check_reach(recipe)
            if by_name:  # this process belongs to the cluster, and another one would not
                _try(recipe, addresses, rehearse, say)
            yield addresses


def try_parts(recipe: ResolvedRun, say: Say = silent) -> None:
    """What a dry run does with the parts of a recipe: start its services, ask all, rehearse one episode, and end them again.

    No Ray is started: with services that are found on it nothing is rehearsed. Raises ValueError like `parts_of`.
    """
    by_name = on_ray(recipe)
    with tempfile.TemporaryDirectory(prefix="burnish-dry-run-") as logs, services_of(recipe.services, Path(logs)) as addresses:
        if not by_name:
            _try(recipe, addresses, rehearse_apart, say)
            return
        check_services(recipe, addresses, without_ray=True)
        say(f"not rehearsed: {', '.join(by_name)} is looked up once the run belongs to the cluster, and an episode is rehearsed then")


def _try(recipe: ResolvedRun, addresses: Mapping[str, str], play: Callable[[ResolvedRun, Mapping[str, str]], Rehearsal], say: Say) -> None:
    check_services(recipe, addresses)
    seen = play(recipe, addresses)
    for line in (seen.line, *seen.notes):
        say(line)


def _drain_s(recipe: ResolvedRun) -> float:
    """Seconds that the answers of an engine may take to end before new weights, where they end first; one that hangs is known by then."""
    return recipe.rollout.episode_timeout_s + recipe.engine.request_timeout_s if recipe.engine.on_new_weights == "finish" else 0.0


@contextmanager
def session_over(recipe: ResolvedRun, addresses: Mapping[str, str], seeds: Mapping[str, int]) -> Iterator[Session]:
    """A session where services and Ray are under way."""
    from burnish.trainer.fleet import FleetLimits
    from burnish.trainer.learner.group import LearnerLimits
    from burnish.trainer.rllib import RFTConfig

    base = verified_model(recipe.model)
    files = read_task_files(recipe.tasks.files) if recipe.tasks.files else None
    worker, limits = recipe.worker_setup(base, addresses, seeds["rft.sampling"]), recipe.limits
    with _files_for_nodes(recipe, worker) as parcel:
        settings = RFTConfig().rft(
            worker=replace(worker, parcel=parcel),
            learner=recipe.learner,
            phase=recipe.rft or RFTPhaseConfig(),
            train_seeds=recipe.tasks.train_seeds,
            tasks=recipe.tasks.files,
            success=recipe.success,
            fleet=FleetLimits(
                recipe.rollout.concurrency,
                limits.stall_s,
                limits.answer_s,
                limits.sync_s + _drain_s(recipe),
                limits.restart_s,
                limits.cancel_s + recipe.rollout.step_timeout_s,
                limits.restarts,
                limits.restart_window_s,
                recipe.placement.min_engines,
                recipe.placement.max_engines,
            ),
            learner_limits=LearnerLimits(
                limits.learner_s, limits.place_s, limits.follow_s, recipe.placement.trusted_network, parcel.node if parcel else ""
            ),
        )
        request_resources(settings, recipe.placement)
        # Ray's core warns that a runner could not restart without its config, which RLlib keeps for as long as there are runners.
        with without_line(b"has constructor arguments in the object store"):
            algo = settings.build_algo()
        try:
            yield Session(recipe, base, seeds, algo, files, learners=algo.learner_group.foreach_learner(this_process))
        finally:
            with uninterrupted():
                algo.stop()


@contextmanager
def _files_for_nodes(recipe: ResolvedRun, worker: WorkerSetup) -> Iterator[Parcel | None]:
    """What nodes without the run's folder are sent, served within the block; None where every node has it."""
    from burnish.rollout.sent_files import serving_files

    if recipe.placement.shared_folder:
        yield None
        return
    code = [*worker.plugins, *(module for module in worker.modules if module.endswith(".py"))]
    sources = sources_of(worker.model, Path(worker.folder), code, recipe.placement.send)
    with serving_files(sources, recipe.limits.sync_s) as parcel:
        yield parcel
