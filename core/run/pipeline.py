"""A run: the recipe's phases in order over one fleet and one learner, with evaluations, checkpoints and the report."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from burnish.cluster import dashboard_url
from burnish.envs.failures import Failure
from burnish.envs.types import Episode, EpisodeGroup
from burnish.inspector.pages.links import Served
from burnish.inspector.runs import read_metrics
from burnish.recipe.phase_run import PhaseRun
from burnish.recipe.plan import Plan
from burnish.recipe.resolve import ResolvedRun
from burnish.recipe.tracking import TrackedRun
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.ledger import Ledger
from burnish.rollout.store.moments import Moment, PerEpisode
from burnish.rollout.store.records import EvaluationRecord, Mode
from burnish.rollout.writing import write_text
from burnish.run.alarms import heed, watch_over
from burnish.run.display import StepBar, evaluation_line, failures_line, held_out_line, new_console, say
from burnish.run.folder import RunFolder, create_run
from burnish.run.measured import tell_measured
from burnish.run.origin import origin_of
from burnish.run.recovery import keep_going
from burnish.run.recovery import resume as take_up
from burnish.run.resume import driven
from burnish.run.retention import Retention
from burnish.run.scale import at_size_asked, engines_asked, heed_size
from burnish.run.time_left import time_left_line
from burnish.run.tracking import tracked
from burnish.run.under_way import Results, Run
from burnish.session import making_of, parts_of, session_over
from burnish.trainer.evaluation.between import held_out_metrics
from burnish.trainer.evaluation.comparison import comparisons
from burnish.trainer.loop import Step
from burnish.trainer.marks import mark
from burnish.trainer.models.best import BestBy
from burnish.trainer.models.checkpoints import CheckpointRecord, best, latest, prune, save_checkpoint
from burnish.trainer.models.finding import find_model
from burnish.trainer.objectives.measures import probe_of
from burnish.trainer.phases.common import Measuring, Phase, PhaseData, PhaseParts, Spent
from burnish.trainer.phases.rft import RFTPhaseConfig, demonstrations_of

Split = Literal["train", "heldout"]


def run(recipe: ResolvedRun, path: Path, *, resume: bool = False, console: Console | None = None, plan: Plan | None = None) -> Results:
    """Run a recipe in the run folder `path`, or go on from its latest checkpoint. Returns every evaluation by phase and mode.

    plan: what is expected of it; with one, each evaluation says how long the rest will take.
    Raises ValueError for what the user can put right, another process that drives the run among it, and what fleet, learner and sync proof
    raise. Whatever happens, services, Ray and engines have ended when this returns.
    """
    console = console or new_console()
    told = TrackedRun(path.resolve().name, path, recipe.record, resume)
    tell = partial(say, console)
    with driven(path, recipe, resume, tell) as opened, tracked(recipe.tracking, told, tell, recipe.limits.tracker_s) as trackers:
        return _run(recipe, replace(opened, trackers=trackers), resume, console, plan)


def _run(recipe: ResolvedRun, folder: RunFolder, resume: bool, console: Console, plan: Plan | None) -> Results:
    asked = engines_asked(folder.path)  # once: what is asked for while the engines start is heeded after the first step
    recipe = at_size_asked(recipe, asked)
    with console.status("making the examples of the phases") as status:  # all: an unfit row must not be met in the middle
        data = _data(recipe, folder, status.update)
    with parts_of(recipe, folder.path / "logs", partial(say, console), folder.path.resolve()) as addresses:
        dashboard = dashboard_url()
        say(console, f"Ray dashboard: {dashboard or 'none'}")
        say(console, rollouts_line(dashboard, folder.path, recipe.placement.ray_address is None))
        with _started(recipe, folder, addresses, console) as current:
            current.data, current.plan, current.engines = data, plan, asked
            done = latest(folder.path) if resume else None
            if resume:
                take_up(current, done)
            keep_going(current, done, _phases)
            results = current.results
    from burnish.inspector.report import write_report

    write_report(folder.path)
    return results


def rollouts_line(dashboard: str, run: Path, own: bool) -> str:
    """Where a run's rollouts are, as it is opened. dashboard: of Ray, "" for none. own: of a Ray that is the run's own."""
    if dashboard and own:
        return f"rollouts, once the dashboard has Ray's token: {dashboard}{Served().run(run.name)}"
    behind = f"; where that serves with --behind-dashboard, they are at {dashboard}/rollouts" if dashboard else ""
    return f"rollouts: burnish inspect {shlex.quote(str(run.parent))}{behind}"


@contextmanager
def _started(recipe: ResolvedRun, folder: RunFolder, addresses: Mapping[str, str], console: Console) -> Iterator[Run]:
    """Engines and learner, and the store that episodes go to."""
    with ExitStack() as stack:
        with console.status("starting engines and learner"):
            session = stack.enter_context(session_over(recipe, addresses, folder.seeds()))
        left_out = session.files.rejects if session.files is not None else ()
        if left_out:
            say(console, f"{len(left_out)} unfit rows of [tasks] are left out: {folder.write_rejects(left_out)}")
        store = EpisodeStore(folder.episodes, folder.path.name, folder.transcripts, recipe.keeping, partial(say, console))
        yield Run(session, folder, console, stack.enter_context(store))


def _phases(run: Run, done: CheckpointRecord | None) -> None:
    if done is None and run.recipe.evaluation.before:
        _evaluate(run, "base", 0)
    retention = _retention(run)
    if done is None and retention is not None:
        retention.measure_base()
    order = [phase.name for phase in run.recipe.phases]
    for number, phase in enumerate(run.recipe.phases):
        if done is not None and number < order.index(done.phase):
            continue
        at = done.step if done is not None and done.phase == phase.name else 0
        if not at or not (at >= phase.table.steps or (done is not None and done.ended)):
            at = _train(run, phase, at)
        if run.recipe.evaluation.after:
            _evaluate(run, phase.name, at)
        if retention is not None:
            retention.judge(phase.name, at)
        tell_measured(run.folder, phase.name, at)


def _retention(run: Run) -> Retention | None:
    """Who measures the skills that the run must not lose, if it names any."""
    table = run.recipe.retention
    return Retention(table, run.session, run.folder, run.console) if table is not None else None


def _train(run: Run, phase: PhaseRun, first: int) -> int:
    """Take the steps of a phase until its last, or its end: show, store and keep what each did, and save checkpoints on the way. Returns
    the last step's number."""
    session, table, at, ends = run.session, phase.table, first, ""
    run.results = {key: result for key, result in run.results.items() if key[0] != phase.name}  # measured before its end moved
    shutil.rmtree(run.folder.suites / phase.name, ignore_errors=True)  # as these were
    _begin(run, phase, first)
    parts, spent = _parts(run, phase, first), Spent()
    rows = list(parts.done)
    for row in rows:
        spent.add(row)
    with StepBar(run.console, phase.name.upper(), table.steps, first) as bar:
        finished: list[Episode] = []

        def watch(group: EpisodeGroup) -> None:
            finished.extend(group.episodes)
            bar.tick(f"group of task {group.task.id}")

        session.loop.on_group, run.tick = watch, bar.tick
        steps = phase.kind.steps(parts, table, run.data.get(phase.name))
        while at < table.steps and not ends:
            with mark("step", f"{phase.name} {at + 1}"), _kept_when_it_fails(run, phase.name, at + 1, finished, "train", "sampled"):
                did = next(steps)
            at = did.step
            rows.append(did.metrics)
            spent.add(did.metrics)
            ends = did.ends or (spent.reached(table) if at < table.steps else "")
            run.folder.log_metrics(phase.name, did.step, did.metrics)
            if isinstance(table, RFTPhaseConfig):
                if ends:
                    session.loop.end_phase()
                run.folder.log_ledger(session.loop.progress.ledger.record(phase.name, did.step))
            else:
                session.algo.show(did.metrics)
            _keep(run, phase.name, did.step, did.episodes, "train", "sampled", did.measured)
            kept = {episode.id for episode in did.episodes}
            finished[:] = [episode for episode in finished if episode.id not in kept]  # while the learner learned, for later steps
            bar.advance(did.line)
            failed = failures_line(did.step, did.episodes)
            if failed is not None:
                say(run.console, failed)
            heed(run.folder, run.console, phase.name, did.alarms)
            heed_size(run)
            final, best_by = bool(ends) or at == table.steps, table.best_by
            is_best = best_by is not None and best_by.is_best(rows)
            if final or is_best or at % table.checkpoint_every == 0:
                back = _go_back(run, phase, best_by) if final and best_by is not None and not is_best else None
                with mark("checkpoint", f"{phase.name} {at}"):
                    _checkpoint(run, phase, at, rows, final=final, ended=ends, back=back)
    session.loop.on_group = None
    if ends:
        say(run.console, f"{phase.name} ended at step {at} of {table.steps}: {ends}")
    _end(run, phase, parts, at)
    return at


def _go_back(run: Run, phase: PhaseRun, by: BestBy) -> CheckpointRecord:
    """Give the learner the weights that the phase was best with, at its end. Every one that was the best so far was saved."""
    session, found = run.session, best(run.folder.path, phase.name, by)
    assert found is not None, "the first one that was measured was the best so far"
    session.learner.restore_from_path((found.trainer_state(run.folder.path) / "learner").resolve())
    if isinstance(phase.table, RFTPhaseConfig):
        session.loop.progress.went_back(session.learner.version)
        session.sync()
    say(run.console, f"{phase.name} ends with the weights of step {found.step}, the best by {by.on}: {by.said(found.metrics)}")
    return found


def _begin(run: Run, phase: PhaseRun, first: int) -> None:
    """Let learner and loop be those of a phase, from its beginning or from where a checkpoint left them."""
    session = run.session
    if isinstance(phase.table, RFTPhaseConfig):
        session.loop.take(phase.table, demonstrations_of(phase.table, run.data.get(phase.name)), run.recipe.evaluation.every)
    if first == 0:
        run.rebase(phase.name)
        session.learner.begin_phase(phase.optimizer, phase.critic)
        session.loop.begin_phase()


def _end(run: Run, phase: PhaseRun, parts: PhaseParts, at: int) -> None:
    """Have the engines prove the weights of a phase that they took no part in, and say what it came to."""
    data = None if isinstance(phase.table, RFTPhaseConfig) else run.data.get(phase.name)
    if data is not None:
        run.session.loop.probe = probe_of(data.probe())
        run.session.sync()
        for line in data.ending_lines(phase.name, at):
            say(run.console, line)
    for line in phase.kind.ending(parts, getattr(run.session.algo, "last_step", None)):
        say(run.console, line)


def _parts(run: Run, phase: PhaseRun, first: int) -> PhaseParts:
    """What a phase trains with, and what its first `first` steps measured."""
    session = run.session

    def train() -> Step:
        session.algo.train()
        did: Step = session.algo.last_step
        return did

    measuring = None
    if isinstance(phase.table, RFTPhaseConfig):
        run.watch = watch_over(run.recipe, run.folder, phase.name, first, run.remembered)
        every = run.recipe.evaluation.every
        measuring = Measuring(every, partial(_measure, run, phase.name)) if every is not None else None
    done = [row.values for row in read_metrics(run.folder.metrics_file) if row.phase == phase.name] if first else []
    assert len(done) == first, f"{run.folder.metrics_file} has {len(done)} steps of {phase.name}, and {first} are done"
    return PhaseParts(session.learner, session.loop, train, done, run.watch, measuring)


def _data(recipe: ResolvedRun, folder: RunFolder, progress: Callable[[str], None]) -> dict[Phase, PhaseData]:
    """The data of every phase that has examples, laid out in the run folder."""
    laid_out: dict[Phase, PhaseData] = {}
    for phase in recipe.phases:
        making = making_of(recipe, phase.table, folder.seeds())
        data = phase.kind.lay_out(phase.table, making, folder.data(phase.name), progress)
        if data is not None:
            laid_out[phase.name] = data
    return laid_out


def _checkpoint(
    run: Run, phase: PhaseRun, step: int, rows: Sequence[Mapping[str, float]], final: bool, ended: str, back: CheckpointRecord | None
) -> None:
    """Save the learner as it is. rows: what was measured of the steps so far. back: the earlier checkpoint whose weights it has again, if
    it has."""
    metrics = rows[-1] if back is None else back.metrics
    learner, progress = run.session.learner, run.session.loop.progress
    run.store.flush()  # what a resumed run will not play again is on the disk

    def write_model(folder: Path) -> None:
        run.session.save_model(folder, origin_of(run, phase, rows if back is None else rows[: back.step], metrics))

    def write_state(folder: Path) -> None:
        folder.mkdir(parents=True)
        learner.save_to_path((folder / "learner").resolve())
        watched = run.watch.row() if run.watch is not None else None
        position = {**progress.row(), "tasks": run.tasks_digest, "guards": watched}
        write_text(folder / "progress.json", json.dumps(position))

    record = save_checkpoint(
        run.folder.path,
        phase.name,
        step,
        write_model=write_model,
        write_trainer_state=write_state,
        final=final,
        ended=ended,
        metrics=dict(metrics),
        weights_of=None if back is None else back.step,
    )
    prune(run.folder.path, run.recipe.keep_checkpoints, run.recipe.best_by)
    if final:
        say(run.console, f"checkpoint {record.folder(run.folder.path)}")


def _evaluate(run: Run, phase: str, step: int) -> None:
    """Measure what has not been measured: a run that was interrupted between two evaluations resumes with the second."""
    for mode in [mode for mode in run.recipe.evaluation.modes if (phase, mode) not in run.results]:
        finished: list[Episode] = []
        title = f"evaluate {phase} {mode}"
        with (
            StepBar(run.console, title, len(run.session.held_out)) as bar,
            _kept_when_it_fails(run, phase, step, finished, "heldout", mode),
        ):

            def count(group: EpisodeGroup, bar: StepBar = bar, finished: list[Episode] = finished) -> None:
                finished.extend(group.episodes)
                bar.advance("")

            began = time.monotonic()
            with mark("evaluation", f"{phase} {mode}"):
                result, episodes = run.session.evaluate(mode, count)
            took = time.monotonic() - began
        _keep(run, phase, step, episodes, "heldout", mode)
        run.store.flush()  # a recorded evaluation is not made again
        earlier = {name: before for (name, its_mode), before in run.results.items() if its_mode == mode}
        against = comparisons(earlier, result, run.recipe.seed)
        run.folder.log_evaluation(EvaluationRecord(phase=phase, step=step, against=against, result=result))
        run.results[(phase, mode)] = result
        say(run.console, evaluation_line(phase, result, against))
        if run.plan is not None and mode == run.recipe.evaluation.modes[0]:
            left = time_left_line(run.plan, run.session, phase, episodes, took)
            if left is not None:
                say(run.console, left)


def _measure(run: Run, phase: str, step: int) -> dict[str, float]:
    """Measure the policy on the first held-out tasks between two steps. What came of it is said, and stored with the row of the step."""
    table, finished, began = run.recipe.evaluation, list[Episode](), time.monotonic()
    mode = table.mode_between

    def note(group: EpisodeGroup) -> None:
        finished.extend(group.episodes)
        run.tick(f"held-out task {group.task.id}")

    with mark("evaluation", f"{phase} {step}"), _kept_when_it_fails(run, phase, step, finished, "heldout", mode):
        result, episodes = run.session.measure(table.tasks_between, mode, note)
    _keep(run, phase, step, episodes, "heldout", mode)
    metrics = held_out_metrics(result, episodes, time.monotonic() - began)
    run.session.algo.show(metrics)
    say(run.console, held_out_line(phase, step, result))
    return metrics


@contextmanager
def _kept_when_it_fails(run: Run, phase: str, step: int, finished: list[Episode], split: Split, mode: Mode) -> Iterator[None]:
    """Keep the transcripts of what had finished when an exception ends the block, and their failures in the books: they show why."""
    try:
        yield
    except Exception as error:
        run.store.put(Moment(phase, step, split, mode), finished, whole=True)
        if split == "train" and isinstance(run.recipe.phase(phase).table, RFTPhaseConfig):
            run.folder.log_ledger(_books_of(run, finished).record(phase, step))
        if finished:
            error.add_note(f"the transcripts of {len(finished)} episodes are kept: burnish rollouts {run.folder.path}")
        raise


def _books_of(run: Run, finished: Sequence[Episode]) -> Ledger:
    """The books of a step that was broken off: what it had dropped is closed, what failed beside it counts as masked, and the rest of what
    was kept or under way stays open."""
    run.session.loop.close_ended()
    ledger = run.session.loop.progress.ledger
    for episode in finished:
        if isinstance(episode.outcome, Failure) and episode.id in ledger.open:
            ledger.mask(episode, episode.outcome.kind)
    return ledger


def _keep(
    run: Run, phase: str, step: int, episodes: Sequence[Episode], split: Split, mode: Mode, measured: PerEpisode | None = None
) -> None:
    at = Moment(phase, step, split, mode)
    run.store.put(at, episodes, measured)
    run.folder.trackers.episodes(at, episodes)


def evaluate_checkpoint(recipe: ResolvedRun, checkpoint: str) -> Results:
    """Measure a checkpoint on the recipe's held-out tasks, print the result, and return it; the run folder made for it keeps the rest."""
    model, name = str(find_model(checkpoint)), f"{recipe.name}-evaluation"
    recipe = replace(recipe, model=model, name=name, record={**recipe.record, "model": model, "name": name})
    folder, console = create_run(recipe), new_console()
    with (
        parts_of(recipe, folder.path / "logs", partial(say, console)) as addresses,
        _started(recipe, folder, addresses, console) as run,
    ):
        _evaluate(run, "base", 0)
        say(console, f"transcripts: burnish rollouts {folder.path}")
        return run.results
