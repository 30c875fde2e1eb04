"""The learning-rate range test of a recipe's supervised phase: its model, its data and its learner, in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from burnish.recipe.resolve import ResolvedRun
from burnish.recipe.seeds import derive_seeds
from burnish.session import making_of
from burnish.trainer.data.examples import Say
from burnish.trainer.models.finding import verified_model
from burnish.trainer.models.importing import no_progress_bars
from burnish.trainer.phases.examples import lay_out_examples
from burnish.trainer.phases.rate_range import RateRange, range_test, ranged
from burnish.trainer.phases.supervised import SupervisedConfig


def supervised_phase(recipe: ResolvedRun, name: str | None) -> SupervisedConfig:
    """The table of the phase of that name, or of the first one that learns by cross-entropy. Raises ValueError when there is none."""
    tables = [phase.table for phase in recipe.phases]
    suited = {table.name: table for table in tables if isinstance(table, SupervisedConfig)}
    if name is None:
        if not suited:
            raise ValueError("no phase of this recipe is supervised (cpt, midtrain, sft); `burnish tune` compares rates of other kinds")
        return next(iter(suited.values()))
    if name not in suited:
        why = "is not in the recipe"
        if name in [table.name for table in tables]:
            why = "is not supervised: one update's loss says nothing of its rate; `burnish tune` compares runs"
        raise ValueError(f"phase {name!r} {why}; supervised are: {', '.join(suited) or 'none'}")
    return suited[name]


def find_rate(recipe: ResolvedRun, table: SupervisedConfig, tried: Sequence[float], say: Say) -> Iterator[RateRange]:
    """The test over these rates, from the recipe's model; see `range_test`. Nothing is kept of it.

    Raises ValueError when the recipe wants several learners, and for what `lay_out` refuses.
    """
    from burnish.trainer.learner.learner import Learner

    if recipe.placement.learners > 1:
        raise ValueError("the test trains in one process, and this recipe has several learners; add --set resources.learners=1")
    seeds, model = derive_seeds(recipe.seed), verified_model(recipe.model)
    longer = table.model_copy(update={"steps": len(tried) + 1})  # a generator makes examples for all of the test
    with tempfile.TemporaryDirectory(prefix="burnish-find-rate-") as scratch:
        data = lay_out_examples(longer, making_of(recipe, longer, seeds), Path(scratch) / "data", say)
        with no_progress_bars():
            learner = Learner(model, recipe.beginning_with(table.name).learner, seed=recipe.seed)
        learner.begin_phase(ranged(recipe.learner.optimizer, table, tried[-1]))
        yield from range_test(learner, table, data, tried)
