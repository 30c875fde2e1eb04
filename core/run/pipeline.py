"""A run: the recipe's phases in order over one fleet and one learner, with evaluations, checkpoints and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from burnish.envs.types import Episode, EpisodeGroup, Task
from burnish.recipe.resolve import PhaseRun, ResolvedRun
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult, Mode, read_evaluations
from burnish.rollout.store.transcripts import TranscriptWriter, transcript_of
from burnish.rollout.weights import SyncProof
from burnish.rpc.address import RAY
from burnish.run.cluster import (
    check_services,
    dashboard_url,
    ray_session,
    request_resources,
    services_of,
    session_logs,
    uninterrupted,
    without_line,
)
from burnish.run.display import StepBar, evaluation_line, say
from burnish.run.folder import RunFolder, create_run, data_seed, open_run
from burnish.trainer.data.examples import supervised_examples
from burnish.trainer.data.supervised import SupervisedExample, shuffled_batch
from burnish.trainer.data.task_files import TaskFiles, read_task_files
from burnish.trainer.data.tasks import held_out_tasks
from burnish.trainer.evaluation.comparison import comparisons
from burnish.trainer.evaluation.evaluate import evaluate
from burnish.trainer.learner.probe import check_saved, probe_loss
from burnish.trainer.loop import MAX_IDLE_STEPS, PolicyProgress, Step
from burnish.trainer.models.checkpoints import CheckpointRecord, latest, prune, save_checkpoint
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.folder import write_model_folder
from burnish.trainer.models.importing import no_progress_bars
from burnish.trainer.phases.config import PHASES, Phase, RFTPhaseConfig, SupervisedConfig
from burnish.trainer.phases.supervised import supervised_step

STAGES: Mapping[Phase, Any] = {"cpt": "midtraining", "sft": "sft", "rft": "rft"}
"""The stage a model is in after each phase."""


@dataclass
class Run:
    """A run under way: its recipe and folder, the RLlib algorithm that owns fleet and learner, and what was measured so far."""

    recipe: ResolvedRun
    folder: RunFolder
    algo: Any
    base: Path
    seeds: Mapping[str, int]
    console: Console
    files: TaskFiles | None = None
    transcripts: list[TranscriptWriter] = field(default_factory=list)
    results: dict[tuple[str, Mode], EvaluationResult] = field(default_factory=dict)
    examples: Mapping[Phase, Sequence[SupervisedExample]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def held_out(self) -> list[Task]:
        """What every evaluation measures."""
        table = self.recipe.evaluation
        return self.files.held_out_tasks(table.tasks) if self.files else held_out_tasks(table.seeds, table.tasks)

    @property
    def tasks_digest(self) -> str | None:
        """Of the files that tasks come from, None without such files."""
        return self.files.digest if self.files else None


Results = Mapping[tuple[str, Mode], EvaluationResult]
"""Every evaluation of a run, by phase and mode."""


def run(recipe: ResolvedRun, path: Path, *, resume: bool = False, console: Console | None = None) -> Results:
    """Run a recipe in the run folder `path`, or go on from its latest checkpoint. Returns every evaluation by phase and mode.

    Raises ValueError for what the user can put right, and what fleet, learner and sync proof raise. Whatever happens, services, Ray and
    engines have ended when this returns.
    """
    folder = open_run(path, recipe)
    console = console or Console()
    with console.status("making the examples of the supervised phases"):  # all of them: a row that is unfit must not be met in the middle
        examples = _examples(recipe, folder)
    with services_of(recipe.services, folder.path / "logs") as addresses:
        on_ray = any(address.startswith(RAY) for address in addresses.values())  # found on the cluster, so not before it is there
        if not on_ray:
            check_services(recipe, addresses)
        with ray_session(recipe.placement):
            if on_ray:
                check_services(recipe, addresses)
            say(console, f"Ray dashboard: {dashboard_url() or 'none'}")
            with _started(recipe, folder, addresses, console) as current:
                current.examples = examples
                done = latest(folder.path) if resume else None
                if resume and done is None:
                    folder.rewind(None)
                _phases(current, done)
                results = current.results
    from burnish.inspector.report import write_report

    write_report(folder.path)
    return results


@contextmanager
def _started(recipe: ResolvedRun, folder: RunFolder, addresses: Mapping[str, str], console: Console) -> Iterator[Run]:
    """Build the fleet and the learner, and end them."""
    from burnish.trainer.rllib import RFTConfig

    base, seeds = find_model(recipe.model), folder.seeds()
    files = read_task_files(recipe.tasks.files) if recipe.tasks.files else None
    settings = RFTConfig().rft(
        worker=recipe.worker_setup(base, addresses, seeds["rft.sampling"]),
        learner=recipe.learner,
        phase=recipe.rft or RFTPhaseConfig(),
        train_seeds=recipe.tasks.train_seeds,
        tasks=recipe.tasks.files,
        success=recipe.success,
    )
    request_resources(settings, recipe.placement)
    # Ray's core warns that a runner could not restart without its config, which RLlib keeps for as long as there are runners.
    with console.status("starting engines and learner"), without_line(b"has constructor arguments in the object store"):
        algo = settings.build_algo()
    shown_at = session_logs() / "burnish" / f"{folder.path.name}.jsonl"
    with TranscriptWriter(folder.transcripts / "episodes.jsonl") as kept, TranscriptWriter(shown_at) as shown:
        try:
            yield Run(recipe, folder, algo, base, seeds, console, files, [kept, shown])
        finally:
            with uninterrupted():
                algo.stop()


def _phases(run: Run, done: CheckpointRecord | None) -> None:
    if done is not None:
        _resume(run, done)
    elif run.recipe.evaluation.before:
        _evaluate(run, "base", 0)
    for phase in run.recipe.phases:
        if done is not None and PHASES.index(phase.name) < PHASES.index(_phase(done)):
            continue
        if done is None or done.phase != phase.name or not done.final:
            _train(run, phase, done.step if done is not None and done.phase == phase.name else 0)
        if run.recipe.evaluation.after:
            _evaluate(run, phase.name, phase.table.steps)


def _train(run: Run, phase: PhaseRun, first: int) -> None:
    if first == 0:
        run.algo.learner_group.begin_phase(phase.optimizer)
    if isinstance(phase.table, SupervisedConfig):
        _supervised(run, phase.name, phase.table, first)
    else:
        _reinforce(run, phase.table, first)


def _phase(record: CheckpointRecord) -> Phase:
    return next(phase for phase in PHASES if phase == record.phase)


def _resume(run: Run, done: CheckpointRecord) -> None:
    """Take over the learner's state and the position in the task stream from a checkpoint."""
    state = done.trainer_state(run.folder.path)
    run.algo.learner_group.restore_from_path(state / "learner")
    run.algo.sync()
    position = json.loads((state / "progress.json").read_text())
    if position.get("tasks") != run.tasks_digest:
        raise ValueError(f"{run.folder.path} cannot resume: the files of [tasks] are not what they were when it was trained; restore them")
    run.algo.loop.progress = PolicyProgress.from_row(position)
    run.folder.rewind(_phase(done), done.step)
    if run.folder.evaluations_file.is_file():
        run.results |= {(record.phase, record.result.mode): record.result for record in read_evaluations(run.folder.evaluations_file)}
    say(run.console, f"resumed from {done.name}")


def _supervised(run: Run, phase: Phase, table: SupervisedConfig, first: int) -> None:
    """Cross-entropy through the same learner: continued pre-training, or supervised fine-tuning."""
    examples = run.examples[phase]
    order = run.seeds[f"{phase}.order"]
    with StepBar(run.console, phase.upper(), table.steps, first) as bar:
        for step in range(first, table.steps):
            batch = [examples[i] for i in shuffled_batch(len(examples), table.batch, order, step)]
            metrics = supervised_step(run.algo.learner_group, batch)
            run.folder.log_metrics(phase, step + 1, metrics)
            bar.advance(f"loss {metrics['loss']:.3f}  {metrics['tokens'] / metrics['seconds']:,.0f} tokens/s")
            _maybe_checkpoint(run, phase, step + 1, table.steps, table.checkpoint_every, metrics)
    run.algo.sync()


def _examples(recipe: ResolvedRun, folder: RunFolder) -> dict[Phase, list[SupervisedExample]]:
    """The examples of every supervised phase."""
    made: dict[Phase, list[SupervisedExample]] = {}
    for phase in recipe.phases:
        if isinstance(phase.table, SupervisedConfig):
            seed = data_seed(folder.seeds(), phase.name, recipe.tasks.train_seeds, phase.table.examples)
            model, longest, args = find_model(recipe.model), recipe.engine.max_context, recipe.rollout.template_args
            made[phase.name] = supervised_examples(phase.name, phase.table, seed, model, longest, args)
    return made


def _reinforce(run: Run, table: RFTPhaseConfig, first: int) -> None:
    groups = table.groups_per_step
    with StepBar(run.console, "RFT", table.steps, first) as bar:
        finished: list[Episode] = []

        def watch(group: EpisodeGroup) -> None:
            finished.extend(group.episodes)
            bar.tick(f"group of task {group.task.id}")

        run.algo.on_group = watch
        for step in range(first, table.steps):
            finished.clear()
            with _kept_when_it_fails(run, "rft", step + 1, finished, "train", "sampled"):
                run.algo.train()
            metrics = dict(run.algo.last_metrics)
            run.folder.log_metrics("rft", step + 1, metrics)
            run.folder.log_ledger(run.algo.loop.progress.ledger.record("rft", step + 1))
            _keep(run, "rft", step + 1, run.algo.last_step.collected.episodes, "train", "sampled")
            bar.advance(_rft_line(metrics, groups))
            last = run.algo.loop.exhausted
            _maybe_checkpoint(run, "rft", step + 1, step + 1 if last else table.steps, table.checkpoint_every, metrics)
            if last:
                break
    run.algo.on_group = None
    if run.algo.loop.exhausted:
        say(run.console, _exhausted_line(run.algo.last_step))
    say(run.console, _proof_line(run.algo.loop.proofs))


def _exhausted_line(step: Step) -> str:
    reward, why = step.metrics.get("reward_mean", float("nan")), ", ".join(f"{n} {reason}" for reason, n in step.collected.dropped.items())
    return (
        f"training ended early: for {MAX_IDLE_STEPS} steps no group had anything to teach ({why} in the last, mean reward {reward:.2f}): "
        "the task is solved, out of reach, or the policy has become a constant; see the last rollouts, and rewards that tell attempts apart"
    )


def _proof_line(proofs: Sequence[SyncProof]) -> str:
    if not proofs:
        return "no step trained, so no sync was proved"
    mean, quantile = max(proof.mean for proof in proofs), max(proof.quantile for proof in proofs)
    return (
        f"sync proof held at all {len(proofs)} weight syncs; log-probabilities of the probe differed by at most {mean:.1e} on average, "
        f"{quantile:.1e} at the 90 % quantile"
    )


def _rft_line(metrics: Mapping[str, float], groups: int) -> str:
    parts = [f"reward {metrics.get('reward_mean', float('nan')):.2f}"]
    if "success" in metrics:
        parts.append(f"success {metrics['success']:.0%}")
    if "learner/entropy" in metrics:
        parts.append(f"entropy {metrics['learner/entropy']:.3f}")
    parts.append(f"{metrics['episodes_per_second']:.0f} episodes/s")
    parts.append(f"{metrics['groups_trained']:.0f}/{groups} groups")
    return "  ".join(parts)


def _maybe_checkpoint(run: Run, phase: Phase, step: int, steps: int, every: int, metrics: Mapping[str, float]) -> None:
    if step % every == 0 or step == steps:
        _checkpoint(run, phase, step, metrics, final=step == steps)


def _checkpoint(run: Run, phase: Phase, step: int, metrics: Mapping[str, float], final: bool) -> None:
    import ray

    learner, progress = run.algo.learner_group, run.algo.loop.progress
    weights = ray.get(learner.snapshot(), timeout=600).tensors
    (probed,) = learner.foreach_learner(probe_loss)

    def write_model(folder: Path) -> None:
        name, source = f"{run.recipe.name}-{phase}", f"{run.name}/{phase}-{step}"
        args = run.recipe.rollout.template_args
        write_model_folder(weights, run.base, folder, name=name, stage=STAGES[phase], source=source, template_args=args)
        with no_progress_bars():
            check_saved(folder, probed)

    def write_state(folder: Path) -> None:
        folder.mkdir(parents=True)
        learner.save_to_path((folder / "learner").resolve())
        position = {**progress.row(), "tasks": run.tasks_digest}
        (folder / "progress.json").write_text(json.dumps(position))

    record = save_checkpoint(
        run.folder.path, phase, step, write_model=write_model, write_trainer_state=write_state, final=final, metrics=metrics
    )
    prune(run.folder.path, run.recipe.keep_checkpoints)
    if final:
        say(run.console, f"checkpoint {record.folder(run.folder.path)}")


def _evaluate(run: Run, phase: str, step: int) -> None:
    """Measure what has not been measured: a run that was interrupted between two evaluations resumes with the second."""
    table = run.recipe.evaluation
    tasks = run.held_out
    wanted: dict[Mode, bool] = {"sampled": table.sampled, "greedy": table.greedy}
    for mode in [mode for mode, chosen in wanted.items() if chosen and (phase, mode) not in run.results]:
        finished: list[Episode] = []
        title = f"evaluate {phase} {mode}"
        with StepBar(run.console, title, len(tasks)) as bar, _kept_when_it_fails(run, phase, step, finished, "heldout", mode):

            def count(group: EpisodeGroup, bar: StepBar = bar, finished: list[Episode] = finished) -> None:
                finished.extend(group.episodes)
                bar.advance("")

            temperature, success = run.recipe.rollout.temperature, run.recipe.success
            result, episodes = evaluate(run.algo.fleet, tasks, mode, temperature, success, count, table.error_budget)
        _keep(run, phase, step, episodes, "heldout", mode)
        earlier = {name: before for (name, its_mode), before in run.results.items() if its_mode == mode}
        against = comparisons(earlier, result, run.recipe.seed)
        run.folder.log_evaluation(EvaluationRecord(phase=phase, step=step, against=against, result=result))
        run.results[(phase, mode)] = result
        say(run.console, evaluation_line(phase, result, against))


@contextmanager
def _kept_when_it_fails(run: Run, phase: str, step: int, finished: list[Episode], split: Any, mode: Mode) -> Iterator[None]:
    """Keep the transcripts of what had finished when an exception ends the block: they show why."""
    try:
        yield
    except Exception as error:
        _keep(run, phase, step, finished, split, mode)
        if finished:
            error.add_note(f"the transcripts of {len(finished)} episodes are kept: burnish rollouts {run.folder.path}")
        raise


def _keep(run: Run, phase: str, step: int, episodes: list[Episode], split: Any, mode: Mode) -> None:
    for episode in episodes:
        stored = transcript_of(episode, run=run.name, phase=phase, step=step, split=split, mode=mode)
        for writer in run.transcripts:
            writer.write(stored)


def evaluate_checkpoint(recipe: ResolvedRun, checkpoint: str) -> Results:
    """Measure a checkpoint on the recipe's held-out tasks, print the result, and return it; the run folder made for it keeps the rest."""
    model, name = str(find_model(checkpoint)), f"{recipe.name}-evaluation"
    recipe = replace(recipe, model=model, name=name, record={**recipe.record, "model": model, "name": name})
    folder, console = create_run(recipe), Console()
    with (
        services_of(recipe.services, folder.path / "logs") as addresses,
        ray_session(recipe.placement),
        _started(recipe, folder, addresses, console) as run,
    ):
        _evaluate(run, "base", 0)
        say(console, f"transcripts: burnish rollouts {folder.path}")
        return run.results
