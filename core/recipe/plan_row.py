"""A plan for a program: what `burnish run RECIPE --dry-run --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.recipe.plan import Done, PhasePlan, Plan
from burnish.recipe.resolve import ResolvedRun


def plan_row(plan: Plan, rehearsed: Sequence[str] = ()) -> dict[str, Any]:
    """As JSON takes it; times are seconds, None where they are not known. rehearsed: what the rehearsal of an episode said."""
    run, model = plan.run, plan.model
    size = {"parameters": model.parameters, "layers": model.layers, "weights_here": model.weights_here}
    rewards = [{"name": one.name, "by": one.use or one.verifier, "term": one.term.description} for one in run.rewards]
    return {
        "run": run.name,
        "run_folder": plan.run_folder,
        "finished": False,
        "platform": run.platform,
        "model": {"folder": str(model.folder), **size},
        "environment": {"id": run.environment.id, "weight": run.environment.weight},
        "rewards": rewards,
        "success": run.success,
        "services": plan.services,
        "engines": run.placement.engines,
        "learners": run.placement.learners,
        "memory_mb": dict(plan.memory_mb),
        "phases": [_phase_row(phase) for phase in plan.phases],
        "about_s": plan.about_s,
        "at_most_s": plan.seconds,
        "measured_in": None if plan.measured_in is None else str(plan.measured_in),
        "done": _done_row(plan.done),
        "warnings": plan.warnings,
        "rehearsal": list(rehearsed),
    }


def finished_row(run: ResolvedRun, folder: Path, done: Done | None, more: str) -> dict[str, Any]:
    """What there is to say of a run that has nothing left to do. more: the command that takes it on where it can go on."""
    return {"run": run.name, "run_folder": str(folder), "finished": True, "phases": [], "done": _done_row(done), "more": more}


def _done_row(done: Done | None) -> dict[str, Any] | None:
    return None if done is None else {"phase": done.phase, "step": done.step}


def _phase_row(phase: PhasePlan) -> dict[str, Any]:
    counts = {"sampled_tokens": phase.sampled_tokens, "trained_tokens": phase.trained_tokens, "episodes": phase.episodes}
    return {"phase": phase.name, "work": phase.work, **counts, "about_s": phase.about_s, "at_most_s": phase.seconds}
