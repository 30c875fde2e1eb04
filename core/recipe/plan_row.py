"""A plan for a program: what `burnish run RECIPE --dry-run --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.recipe.plan import PhasePlan, Plan


def plan_row(plan: Plan, rehearsed: Sequence[str] = ()) -> dict[str, Any]:
    """As JSON takes it; times are seconds, None where they are not known. rehearsed: what the rehearsal of an episode said."""
    run, model = plan.run, plan.model
    size = {"parameters": model.parameters, "layers": model.layers, "weights_here": model.weights_here}
    rewards = [{"name": one.name, "by": one.use or one.verifier, "term": one.term.description} for one in run.rewards]
    return {
        "run": run.name,
        "run_folder": plan.run_folder,
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
        "done": None if plan.done is None else {"phase": plan.done.phase, "step": plan.done.step},
        "warnings": plan.warnings,
        "rehearsal": list(rehearsed),
    }


def _phase_row(phase: PhasePlan) -> dict[str, Any]:
    counts = {"sampled_tokens": phase.sampled_tokens, "trained_tokens": phase.trained_tokens, "episodes": phase.episodes}
    return {"phase": phase.name, "work": phase.work, **counts, "about_s": phase.about_s, "at_most_s": phase.seconds}
