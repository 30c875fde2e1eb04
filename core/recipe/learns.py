"""What of the model each phase of a run trains, in words."""

from __future__ import annotations

from burnish.recipe.resolve import ResolvedRun
from burnish.recipe.sizes import ModelFacts, adapter_parameters
from burnish.trainer.learner.config import LoRAConfig


def learns(run: ResolvedRun, model: ModelFacts) -> list[str]:
    """One line of all phases where they train the same adapters, a line of each where they do not; none where all train all weights."""
    if all(phase.lora is None for phase in run.phases):
        return []
    said, alone, before = dict[str, str](), run.engine.adapters != "merged", ""
    for phase in run.phases:
        alone = alone and not phase.merges  # engines have the model that the run began with, and no other
        over = f"over what {before} ends with, " if phase.merges else ""
        said[phase.name] = over + ("all weights" if phase.lora is None else _adapters_line(phase.lora, alone, model))
        before = phase.name
    alike = set(said.values())
    return [*alike] if len(alike) == 1 else [f"{name}: {line}" for name, line in said.items()]


def _adapters_line(lora: LoRAConfig, alone: bool, model: ModelFacts) -> str:
    count = adapter_parameters(model, lora)
    return f"adapters of rank {lora.rank}, {count / 1e6:.1f} M parameters ({count / model.parameters:.1%} of the model's); " + (
        f"engines get these {4 * count / 1e6:.1f} MB alone and merge them, checkpoints get the model with them merged into it"
        if alone
        else "engines and checkpoints get the model with the adapters merged into it"
    )
