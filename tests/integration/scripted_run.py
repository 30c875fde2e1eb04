"""Whole runs of the pipeline in this process, over a scripted engine and without Ray, each in a fork that may be killed at a moment.

    python -m tests.integration.scripted_run RECIPE.toml FOLDER MOMENT …      a MOMENT is EVENT:N, several with "," between, or "whole"

For each moment, the run in FOLDER/MOMENT is killed when EVENT happens for the N-th time, and then resumed until it ends; where there are
several, it is resumed to be killed by the next one first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from tests.unit.test_recorded_steps import REWARD, OneWorker, even_digits, scripted

from burnish.recipe.load import load_config
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.rewards.plugin import reward
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.transcripts import TranscriptWriter
from burnish.rollout.weights import ParityBound
from burnish.rollout.worker import RolloutWorker
from burnish.run import pipeline
from burnish.run.folder import RunFolder, create_run, open_run
from burnish.session import Session
from burnish.trainer.data.tasks import training_tasks
from burnish.trainer.learner.learner import Learner
from burnish.trainer.loop import LoopSettings, PolicyLoop, Step
from burnish.trainer.phases.rft import RFTPhaseConfig

happened: Counter[str] = Counter()
killed_at = ("", 0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


strikes = [die]
"""What happens at the event."""


def event(name: str) -> None:
    """Count an event, and let come what comes when it is the one."""
    happened[name] += 1
    if (name, happened[name]) == killed_at:
        for strike in strikes:
            strike()


def watched(owner: Any, name: str, called: str, before: bool = False) -> None:
    """Make each call of a function an event, before it or after it."""
    real: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if before:
            event(called)
        result = real(*args, **kwargs)
        if not before:
            event(called)
        return result

    setattr(owner, name, call)


class LocalLearner(Learner):
    """A learner under the names that its Ray group has."""

    def save_to_path(self, path: Path) -> None:
        self.save(path)

    def restore_from_path(self, path: Path) -> None:
        self.restore(path)

    def foreach_learner(self, function: Callable[[Learner], Any]) -> list[Any]:
        return [function(self)]

    def shutdown(self) -> None:
        """It has no process of its own to end."""


@dataclass(frozen=True)
class LocalConfig:
    """What a session asks of an algorithm's config."""

    recipe: ResolvedRun

    def build_learner_group(self) -> LocalLearner:
        return LocalLearner(Path(self.recipe.model), self.recipe.learner, 3)


class LocalAlgorithm:
    """What a session asks of RLlib's algorithm."""

    last_step: Step

    def __init__(self, recipe: ResolvedRun, worker: RolloutWorker) -> None:
        self.config = LocalConfig(recipe)
        self.fleet, self.learner_group = OneWorker(worker), self.config.build_learner_group()
        settings = LoopSettings(recipe.rft or RFTPhaseConfig(), recipe.rollout, recipe.success, ParityBound(math.inf, math.inf))
        self.loop = PolicyLoop(self.fleet, self.learner_group, settings, partial(training_tasks, recipe.tasks.train_seeds, 7))
        self.loop.sync()

    def train(self) -> None:
        self.last_step = self.loop.step()

    def show(self, metrics: Mapping[str, float]) -> None:
        """It has no dashboard."""


@contextlib.contextmanager
def local_session(recipe: ResolvedRun, addresses: Any, seeds: Any) -> Iterator[Session]:
    model = Path(recipe.model)
    engine = ScriptedEngine(scripted, max_context=recipe.engine.max_context)
    worker = RolloutWorker(recipe.worker_setup(model, addresses, seeds["rft.sampling"]), "rollout-1", engine=engine)
    try:
        yield Session(recipe, model, seeds, LocalAlgorithm(recipe, worker))
    finally:
        worker.close()


def instead(**parts: Any) -> None:
    """Give the pipeline other parts than its own."""
    for name, part in parts.items():
        setattr(pipeline, name, part)


def play(recipe: Path, folder: Path) -> None:
    run = resolve(load_config(recipe))
    resume = folder.is_dir()
    made = open_run(folder, run) if resume else create_run(run, run_dir=folder)
    instead(session_logs=lambda: folder.parent / "shown")
    pipeline.run(run, made.path, resume=resume)


def in_a_fork(work: Callable[[], None]) -> int:
    """Exit status of a child that does it: negative is the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def local_parts() -> None:
    """Put local parts in the place of Ray's."""
    instead(parts_of=lambda *_: contextlib.nullcontext({}), session_over=local_session, dashboard_url=lambda: "")
    ray.get = lambda value, timeout: value


def prepare() -> None:
    """Use local parts, and make events of what a run does."""
    reward(REWARD)(even_digits)
    local_parts()
    watched(OneWorker, "poll", "polled")
    watched(LocalLearner, "step", "updated")
    watched(RunFolder, "log_metrics", "metrics")
    watched(RunFolder, "log_ledger", "ledger")
    watched(TranscriptWriter, "write", "transcript")
    watched(EpisodeStore, "_write", "storing", before=True)
    watched(EpisodeStore, "_write", "stored")
    watched(Session, "save_model", "model-written")
    watched(LocalLearner, "save", "state-written")
    watched(pipeline, "save_checkpoint", "checkpoint")
    watched(pipeline, "prune", "pruned")
    watched(pipeline, "_measure", "measured")
    watched(RunFolder, "log_evaluation", "evaluation-due", before=True)
    watched(RunFolder, "log_evaluation", "evaluation")


def folder_of(moment: str) -> str:
    return moment.replace(":", "-").replace(",", "_")


def main() -> None:
    global killed_at
    recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
    prepare()
    ended = {}
    for moment in sys.argv[3:]:
        run = folder / folder_of(moment)
        for one in moment.split(",") if moment != "whole" else ():
            name, _, count = one.partition(":")
            killed_at = (name, int(count))
            status = in_a_fork(partial(play, recipe, run))
            killed_at = ("", 0)
            assert status == -signal.SIGKILL, f"{one} of {moment} never happened: {status}"
        ended[moment] = in_a_fork(partial(play, recipe, run))
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
