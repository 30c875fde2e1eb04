"""A run under way: what its parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from burnish.recipe.plan import Plan
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.records import EvaluationResult, Mode
from burnish.run.folder import RunFolder
from burnish.session import Session
from burnish.trainer.data.examples import silent
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.phases.common import Phase, PhaseData
from burnish.trainer.watch.guards import Watch


@dataclass
class Run:
    """A run under way: its session and folder, and what was measured so far.

    store: where episodes go with their tokens. data: of every phase that has examples. watch: the guards over reinforcement, once it has
    begun; remembered: what the checkpoint that the run goes on from kept of them. plan: what was expected of the run, for what is left
    of it. tick: shows a note beside the bar of the phase under way. engines: how many were asked for last (`scale.heed_size`), or why that
    cannot be told.
    """

    session: Session
    folder: RunFolder
    console: Console
    store: EpisodeStore
    results: dict[tuple[str, Mode], EvaluationResult] = field(default_factory=dict)
    data: Mapping[Phase, PhaseData] = field(default_factory=dict)
    watch: Watch | None = None
    remembered: Mapping[str, Any] | None = None
    plan: Plan | None = None
    tick: Callable[[str], None] = silent
    engines: int | str | None = None

    @property
    def recipe(self) -> ResolvedRun:
        return self.session.recipe

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def tasks_digest(self) -> str | None:
        """Of the files that tasks come from, None without such files."""
        return self.session.files.digest if self.session.files else None

    def begun_from(self, phase: Phase) -> Path:
        """The model that a phase begins from: the last checkpoint of the phase before, or the base."""
        order = [one.name for one in self.recipe.phases]
        before = order[: order.index(phase)]
        earlier = [one for one in list_checkpoints(self.folder.path) if one.final and one.phase in before]
        return earlier[-1].model(self.folder.path) if earlier else self.session.base

    def rebase(self, phase: Phase) -> None:
        """Let the learner have the adapters of a phase, or none, over the model that they are of: what the phase, or the last one before it
        that did not go on with the same adapters, began from."""
        phases = self.recipe.phases
        if not any(one.merges for one in phases):
            return
        number = [one.name for one in phases].index(phase)
        merged = [one.name for one in phases[: number + 1] if one.merges]
        base = self.begun_from(merged[-1]) if merged else self.session.base
        self.session.learner.rebase(base.resolve(), phases[number].lora)


Results = Mapping[tuple[str, Mode], EvaluationResult]
"""Every evaluation of a run, by phase and mode."""
