"""What a run that goes on takes over of what it measured and wrote, and what it does again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from burnish.envs.types import Episode, Message, Reward, Task
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult, Mode, read_evaluations
from burnish.run import pipeline
from burnish.run.folder import RunFolder
from burnish.run.pipeline import Run
from burnish.trainer.evaluation.config import EvaluationConfig
from burnish.trainer.models.checkpoints import CheckpointRecord
from burnish.trainer.schedule.progress import PolicyProgress

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


def run_of(path: Path, steps: int, store: EpisodeStore, evaluate: Callable[[Mode], EvaluationResult]) -> Run:
    """A run of one phase whose session evaluates as it is told."""
    path.joinpath("transcripts").mkdir()
    recipe = SimpleNamespace(
        phases=[SimpleNamespace(name="rft", table=SimpleNamespace(steps=steps))],
        evaluation=EvaluationConfig(), keep_checkpoints=3, retention=None, seed=0,
    )  # fmt: skip
    session: Any = SimpleNamespace(
        recipe=recipe, files=None, held_out=[Task("a", 1), Task("b", 2)], sync=lambda: [],
        learner=SimpleNamespace(restore_from_path=lambda folder: None, version=steps), loop=SimpleNamespace(progress=None),
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
        pipeline._resume(run, done)
        pipeline._phases(run, done)
    assert asked == [mode for mode in modes if mode not in measured_since]
    assert {mode: found.success for (_, mode), found in run.results.items()} == dict.fromkeys(modes, 0.9)
    recorded = [(one.step, one.result.mode) for one in read_evaluations(run.folder.evaluations_file)]
    assert sorted(recorded) == sorted((step, mode) for step in (100, 200) for mode in modes)


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
        pipeline._resume(run, done)
    assert list((tmp_path / "episodes").glob("*.parquet")) == []


def test_an_evaluation_is_recorded_after_its_transcripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded first, and killed before the transcripts are there, it would count as measured and nobody could look at it."""

    def full(*given: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pipeline, "TranscriptWriter", full)
    with EpisodeStore(tmp_path / "episodes", "r") as store:
        run = run_of(tmp_path, 200, store, lambda mode: result(mode, 0.5))
        with pytest.raises(OSError, match="no space left"):
            pipeline._evaluate(run, "rft", 200)
    assert not run.folder.evaluations_file.exists() and run.results == {}
