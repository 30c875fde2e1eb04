"""What is doubtful about the order of a recipe's phases, on the model that each of them will find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from burnish.recipe.phase_run import PhaseRun
from burnish.trainer.data.curated.catalog import categories_of, find_catalog
from burnish.trainer.data.sources import holds_texts
from burnish.trainer.models.manifest import Stage, own_manifest
from burnish.trainer.phases.supervised import SupervisedConfig
from burnish.trainer.phases.transitions import TAUGHT, Remedy, doubts, standing


def order_doubts(phases: Sequence[PhaseRun], model: Path, examples: Sequence[int | None]) -> Iterator[str]:
    """A line for each doubt. examples: how many each phase has, None where it makes them as it goes. Of a model without a manifest nothing
    is known until a phase has taught it to answer."""
    manifest = own_manifest(model)
    stages: list[Stage] = [*(one.stage for one in manifest.lineage), manifest.stage] if manifest is not None else []
    for at, (phase, count) in enumerate(zip(phases, examples, strict=True)):
        if stages:
            stage = standing(stages)
            for doubt in doubts(stage, phase.table.kind, count, set(_remedies(phases, at))):
                yield f"phase {phase.name} on a model of stage {stage}: {doubt}"
        if stages or phase.kind.stage in TAUGHT:
            stages.append(phase.kind.stage)


def _remedies(phases: Sequence[PhaseRun], at: int) -> Iterator[Remedy]:
    table = phases[at].table
    if isinstance(table, SupervisedConfig) and table.own_share < 1 and _has_talks(table):
        yield "blended"
    if any(later.table.kind == "sft" for later in phases[at + 1 :]):
        yield "sft follows"


def _has_talks(table: SupervisedConfig) -> bool:
    """Whether what a phase is blended with has conversations: general texts beside documents are documents, too."""
    categories = categories_of([find_catalog(name, check=False) for name in table.catalogs])
    named = categories if table.blend is None else [name for name, percent in table.blend.curated.items() if percent]
    return any(not holds_texts(*categories[name]) for name in named)
