"""What a run that goes on takes over of what it measured and wrote, and what it does again."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from burnish.envs.types import Episode, EpisodeGroup, Message, Reward, Task
from burnish.recipe.limits import LimitsConfig
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.json_lines import JsonLines, read_json_lines
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, EvaluationResult, Mode, RollBackRow, read_alarms, read_evaluations
from burnish.run import pipeline
from burnish.run.alarms import GuardStop, heed
from burnish.run.folder import RunFolder
from burnish.run.recovery import keep_going, resume
from burnish.run.under_way import Run
from burnish.trainer.evaluation.config import EvaluationConfig
from burnish.trainer.learner.group import LearnerLost
from burnish.trainer.models.checkpoints import CheckpointRecord, latest
from burnish.trainer.models.manifest import MANIFEST_FILE, Manifest, lineage_of
from burnish.trainer.schedule.progress import Issued, PolicyProgress
from burnish.trainer.watch.guards import Alarm, GuardsConfig

pytestmark = pytest.mark.unit


def result(mode: Mode, success: float) -> EvaluationResult:
    return EvaluationResult(mode, "env", 2, 2, success, 0.0, 1.0, success, 1.0, 1.0, {"a": success, "b": success})


def checkpoint(run: Path, step: int) -> CheckpointRecord:
    """A checkpoint of `rft` with nothing but a position in it."""
    done = CheckpointRecord(phase="rft", step=step, final=True, created_at=datetime.now(UTC))
    state = done.trainer_state(run)
    state.mkdir(parents=True)
    done.model(run).mkdir(parents=True)
    (state / "progress.json").write_text(json.dumps({**PolicyProgress(step=step).row(), "tasks": None, "guards": None}))
    return done


def saved(run: Path, step: int, progress: PolicyProgress) -> None:
    """A checkpoint at a position, in the list of them."""
    record = CheckpointRecord(phase="rft", step=step, created_at=datetime.now(UTC))
    record.trainer_state(run).mkdir(parents=True)
    (record.trainer_state(run) / "progress.json").write_text(json.dumps({**progress.row(), "tasks": None, "guards": None}))
    with JsonLines(run / "checkpoints.jsonl") as lines:
        lines.append(record.model_dump(mode="json"))


def run_of(path: Path, steps: int, store: EpisodeStore, evaluate: Callable[[Mode], EvaluationResult]) -> Run:
    """A run of one phase whose session evaluates as it is told."""
    path.joinpath("transcripts").mkdir(exist_ok=True)
    recipe = SimpleNamespace(
        phases=[SimpleNamespace(name="rft", table=SimpleNamespace(steps=steps), merges=False)],
        evaluation=EvaluationConfig(), keep_checkpoints=3, best_by={}, retention=None, seed=0, limits=LimitsConfig(), guards=GuardsConfig(),
    )  # fmt: skip
    session: Any = SimpleNamespace(
        recipe=recipe, files=None, held_out=[Task("a", 1), Task("b", 2)], sync=lambda: [],
        learner=SimpleNamespace(restore_from_path=lambda folder: None, version=steps), loop=SimpleNamespace(progress=PolicyProgress()),
        algo=SimpleNamespace(fleet=SimpleNamespace(stop=lambda: None)), restart_learner=lambda: None,
        evaluate=lambda mode, on_group: (evaluate(mode), []),
    )  # fmt: skip
    return Run(session, RunFolder(path), Console(quiet=True), store)


@pytest.mark.parametrize("measured_since", [(), ("sampled",)])
def test_a_phase_that_got_more_steps_is_evaluated_at_its_new_end(tmp_path: Path, measured_since: tuple[Mode, ...]) -> None:
    """It was evaluated at step 100, went on to 200, and was killed before the evaluation there, or between two."""
    asked: list[Mode] = []

    def evaluate(mode: Mode) -> EvaluationResult:
        asked.append(mode)
        return result(mode, 0.9)

    modes = EvaluationConfig().modes
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        run, done = run_of(tmp_path, 200, store, evaluate), checkpoint(tmp_path, 200)
        for step, some in ((100, modes), (200, measured_since)):
            for mode in some:
                run.folder.log_evaluation(EvaluationRecord(phase="rft", step=step, result=result(mode, 0.4 if step == 100 else 0.9)))
        resume(run, done)
        pipeline._phases(run, done)
    assert asked == [mode for mode in modes if mode not in measured_since]
    assert {mode: found.success for (_, mode), found in run.results.items()} == dict.fromkeys(modes, 0.9)
    recorded = [(one.step, one.result.mode) for one in read_evaluations(run.folder.evaluations_file)]
    assert sorted(recorded) == sorted((step, mode) for step in (100, 200) for mode in modes)


def stored_model(folder: Path, digest: str, *parents: Manifest) -> Manifest:
    """A model folder with nothing but a manifest in it."""
    made = Manifest(
        name=folder.name, stage="rft", source="x", architecture="LlamaForCausalLM", parameters=1, files={"model.safetensors": digest * 64},
        parents=tuple(one.digest for one in parents), lineage=lineage_of(parents), created_by="x", created_at=datetime.now(UTC),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_text(made.model_dump_json())
    return made


def test_a_run_does_not_go_on_from_another_model_than_it_began_with(tmp_path: Path) -> None:
    """A run folder as the model stands for its latest checkpoint, and there may be a later one by now."""
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        run, done = run_of(tmp_path, 200, store, lambda mode: result(mode, 0.0)), checkpoint(tmp_path, 20)
        session: Any = run.session
        session.base, session.recipe.model = tmp_path / "base", "runs/other"
        stored_model(done.model(tmp_path), "b", stored_model(session.base, "a"))
        resume(run, done)
        stored_model(session.base, "c")
        with pytest.raises(ValueError, match=r"its model runs/other is sha256:\w+ by now, which rft-20 was not made from"):
            resume(run, done)


def test_episodes_that_are_taken_back_do_not_come_with_a_file_that_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write, rewind = EpisodeStore._write, RunFolder.rewind

    def slow(*given: Any) -> None:
        begun.set()
        go_on.wait(60)
        write(*given)

    def rewinds(*given: Any) -> None:
        rewind(*given)
        go_on.set()  # at the latest

    monkeypatch.setattr(EpisodeStore, "_write", slow)
    monkeypatch.setattr(RunFolder, "rewind", rewinds)
    episode = Episode(Task("t", 0), 0, (), (Message("user", "Which?"),), Reward(1.0))
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        run, done = run_of(tmp_path, 200, store, lambda mode: result(mode, 0.0)), checkpoint(tmp_path, 20)
        store.put(Moment("rft", 25, "train", "sampled"), [episode])
        assert begun.wait(60)
        threading.Timer(0.2, go_on.set).start()
        resume(run, done)
    assert list((tmp_path / "episodes").glob("*.parquet")) == []


def test_an_evaluation_is_recorded_after_its_transcripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded first, and killed before the transcripts are there, it would count as measured and nobody could look at it."""

    def full(*given: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(EpisodeStore, "_write", full)  # which the store's own thread does
    episode = Episode(Task("t", 0), 0, (), (Message("user", "Which?"),), Reward(1.0))
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        run = run_of(tmp_path, 200, store, lambda mode: result(mode, 0.5))
        monkeypatch.setattr(run.session, "evaluate", lambda mode, on_group: (result(mode, 0.5), [episode]))
        with pytest.raises(OSError, match="no space left"):
            pipeline._evaluate(run, "rft", 200)
    assert not run.folder.evaluations_file.exists() and run.results == {}


class Phases:
    """The phases of a run, of which every step takes two tasks. lost_at: the steps after which the learner is lost, one start after the
    other; alarms_at: those after which a guard sends the run back; killed_at: the step after which the process ends. first: the first step
    of each start, with the task that it began at."""

    def __init__(
        self, steps: int, lost_at: Sequence[int] = (), alarms_at: Sequence[int] = (), every: int = 10, killed_at: int | None = None
    ) -> None:
        self.steps, self.lost_at, self.alarms_at, self.every = steps, list(lost_at), list(alarms_at), every
        self.killed_at = killed_at
        self.first = list[tuple[int, int]]()

    def __call__(self, run: Run, done: CheckpointRecord | None) -> None:
        progress = run.session.loop.progress
        start = done.step if done is not None else 0
        self.first.append((start + 1, progress.position))
        for step in range(start + 1, self.steps + 1):
            progress.position += 2
            run.folder.log_metrics("rft", step, {"loss": 0.0})
            if self.alarms_at and step == self.alarms_at[0]:
                heed(run.folder, run.console, "rft", [Alarm("drift", "roll_back", self.alarms_at.pop(0), "planted")])
            if step % self.every == 0:
                saved(run.folder.path, step, progress)
            if step == self.killed_at:
                raise KeyboardInterrupt
            if self.lost_at and step == self.lost_at[0]:
                self.lost_at.pop(0)
                raise LearnerLost("the learner died: planted")


def gone_through(path: Path, phases: Phases, resumed: bool = False, **limits: float) -> tuple[Run, list[AlarmRow]]:
    """A run through the phases, or one that is resumed, and what its trackers were told of alarms."""
    told = list[AlarmRow]()
    with EpisodeStore(path / "episodes", "r") as store:
        run = run_of(path, phases.steps, store, lambda mode: result(mode, 0.0))
        run.folder = replace(run.folder, trackers=cast(Any, SimpleNamespace(metrics=lambda *row: None, alarm=told.append)))
        run.recipe.limits = LimitsConfig(**limits)  # type: ignore[misc,arg-type]  # a stand-in, which is not frozen
        run.session.learner.version = 0
        done = latest(path) if resumed else None
        if resumed:
            resume(run, done)
        keep_going(run, done, phases)
    return run, told


def test_a_learner_is_started_anew_as_long_as_the_run_gets_further(tmp_path: Path) -> None:
    phases = Phases(40, lost_at=[5, 15, 25, 26])
    run, _ = gone_through(tmp_path, phases, restarts=4)
    assert [start for start, _ in phases.first] == [1, 1, 11, 21, 21]
    assert [row["step"] for _, row in read_json_lines(run.folder.metrics_file)] == list(range(1, 41))


@pytest.mark.parametrize(
    ("lost_at", "restarts", "why"),
    [
        ([15, 15], 4, "the one before it was lost, too, and the run has got no further since"),
        ([15, 12], 4, "the one before it was lost, too, and the run has got no further since"),
        ([5, 15, 25], 2, "it had to be started anew 3 times within 3600 s, and limits.restarts is 2"),
        ([5], 0, "it had to be started anew once within 3600 s, and limits.restarts is 0"),
    ],
    ids=["at the same step", "earlier", "too often", "never"],
)
def test_a_learner_that_is_lost_without_end_ends_the_run(lost_at: list[int], restarts: int, why: str, tmp_path: Path) -> None:
    with pytest.raises(LearnerLost) as found:
        gone_through(tmp_path, Phases(40, lost_at), restarts=restarts)
    assert str(found.value) == f"the learner died: planted; {why}"


def test_a_learner_that_is_lost_again_after_a_while_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0.0, 100.0)
    monkeypatch.setattr("burnish.trainer.restarts.time.monotonic", lambda: next(now))
    phases = Phases(40, [5, 15, 25, 35])
    gone_through(tmp_path, phases, restarts=1, restart_window_s=90.0)
    assert [start for start, _ in phases.first] == [1, 1, 11, 21, 31], "once in every window, from the checkpoint before"


class LostAfterItWentBack(Phases):
    """Lost at 39, started anew from 20, sent back there by a guard at 40, and lost at these steps since."""

    def __init__(self, *since: int) -> None:
        super().__init__(60, lost_at=[39], alarms_at=[40], every=20)
        self.since = since

    def __call__(self, run: Run, done: CheckpointRecord | None) -> None:
        if len(self.first) == 2:
            self.lost_at = list(self.since)
        super().__call__(run, done)


def test_a_learner_that_is_lost_after_the_run_went_back_is_started_anew_as_long_as_it_had_got_further(tmp_path: Path) -> None:
    phases = LostAfterItWentBack(35)
    run, _ = gone_through(tmp_path, phases)
    assert [start for start, _ in phases.first] == [1, 21, 21, 21]
    assert [row["step"] for _, row in read_json_lines(run.folder.metrics_file)] == list(range(1, 61))
    tmp_path.joinpath("other").mkdir()
    with pytest.raises(LearnerLost, match="the run has got no further since"):  # than 35, wherever it had been before that
        gone_through(tmp_path / "other", LostAfterItWentBack(35, 35))


def test_a_run_that_went_back_goes_on_with_other_tasks_whoever_is_lost_since(tmp_path: Path) -> None:
    """It went back from step 13 to the checkpoint of step 10, where 20 tasks had been taken, and 26 by then."""
    phases = Phases(20, alarms_at=[13], lost_at=[15])
    run, told = gone_through(tmp_path, phases)
    assert phases.first == [(1, 0), (11, 26), (11, 26)]
    assert [(row.step, row.action) for row in read_alarms(run.folder.alarms_file)] == [(13, "roll_back")]
    assert len(told) == 1, "trackers are told once"


def test_a_run_that_is_killed_after_it_went_back_goes_on_with_other_tasks_and_counts_on(tmp_path: Path) -> None:
    """It went back from step 13 to the checkpoint of step 10, and was killed at step 15, before the next one."""
    with pytest.raises(KeyboardInterrupt):
        gone_through(tmp_path, Phases(20, alarms_at=[13], killed_at=15))
    phases = Phases(40, alarms_at=[14, 23, 31])
    with pytest.raises(GuardStop, match=r"step 23: guard drift: planted; the run went back 2 times already \(guards\.roll_backs\)"):
        gone_through(tmp_path, phases, resumed=True)
    assert phases.first == [(11, 26), (11, 34)]
    alarms = RunFolder(tmp_path).alarms_file
    assert [(row.step, row.action) for row in read_alarms(alarms)] == [(13, "roll_back"), (14, "roll_back"), (23, "roll_back")]
    again = Phases(40, alarms_at=[23])
    with pytest.raises(GuardStop, match="the run went back 2 times already"):
        gone_through(tmp_path, again, resumed=True)
    assert [row.step for row in read_alarms(alarms)] == [13, 14, 23], "what was done again is not in the file twice"


@pytest.mark.parametrize("went_back_at", [None, 11, 14, 22])
def test_what_a_checkpoint_has_open_is_not_played_again_after_the_run_went_back(tmp_path: Path, went_back_at: int | None) -> None:
    """With 14 tasks taken, 8 of them trained; the run went back from there, from further on, or has been before."""
    progress = PolicyProgress(step=4, position=14, open={f"train-{i}": Issued(i, 3) for i in range(8, 14)})
    for i in range(14):
        progress.ledger.issue(f"train-{i}", 2)
    progress.ledger.settle(
        EpisodeGroup(task, tuple(Episode(task, sample, (), (), Reward(1.0)) for sample in range(2)))
        for task in (Task(f"train-{i}", i) for i in range(8))
    )
    saved(tmp_path, 4, progress)
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        run = run_of(tmp_path, 20, store, lambda mode: result(mode, 0.0))
        if went_back_at is not None:
            run.folder.log_roll_back(RollBackRow(phase="rft", step=8, guards=("drift",), position=went_back_at))
        resume(run, latest(tmp_path))
    resumed, again = run.session.loop.progress, went_back_at is None or went_back_at < 14
    assert resumed.position == (14 if again else went_back_at)
    assert list(resumed.open) == ([f"train-{i}" for i in range(8, 14)] if again else [])
    resumed.ledger.check(in_flight=12 if again else 0)
    assert resumed.ledger.dropped == ({} if again else {"surplus": 12})


def test_a_run_that_is_killed_on_its_way_back_knows_that_it_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "rewind", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        gone_through(tmp_path, Phases(20, alarms_at=[13]))
    phases = Phases(20)
    run, _ = gone_through(tmp_path, phases, resumed=True)
    assert phases.first == [(11, 26)] and [row.step for row in read_alarms(run.folder.alarms_file)] == [13]
