"""What a phase was trained on so far, for the manifests of its checkpoints: its sources, and what of a blend each of them had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from burnish.run.under_way import Run
from burnish.trainer.data.config import OWN, TRAIN_SEEDS, SeedRange
from burnish.trainer.models.manifest import BlendShare, DataUse, json_sha256
from burnish.trainer.phases.common import PhaseConfig
from burnish.trainer.phases.rft import RFTPhaseConfig

Rows = Sequence[Mapping[str, float]]
"""What was measured in the steps of a phase, from the first."""


def data_used(run: Run, table: PhaseConfig, rows: Rows) -> tuple[DataUse, ...]:
    """What the phase of a table was trained on in the steps whose metrics are given."""
    uses = run.data[table.name].uses if table.name in run.data else ()
    if isinstance(table, RFTPhaseConfig):
        return (*_tasks(run, table, rows), *_replayed(run, uses, rows))
    drawn = {name.removeprefix("blend/"): value for name, value in (rows[-1] if rows else {}).items() if name.startswith("blend/")}
    return tuple(_with(use, drawn, _shares(_taught(rows))) for use in uses)


def _tasks(run: Run, table: RFTPhaseConfig, rows: Rows) -> Iterator[DataUse]:
    """The tasks of the recipe's own environment, and of those that are blended with it."""
    recipe, files = run.recipe, run.session.files
    own = _made(recipe.environment.id, recipe.environment.args, recipe.tasks.train_seeds)
    if recipe.tasks.files is not None and files is not None:
        own = DataUse(source=recipe.tasks.files.train, sha256=files.digest, examples=len(files.train))
    if table.task_blend is None:
        yield own
        return
    uses = {OWN: own}
    for one in table.blend:
        uses[one.called] = _made(one.environment, one.environment_args, TRAIN_SEEDS)
    groups = sum(row.get("groups_sampled", 0.0) for row in rows)
    drawn = dict[str, float]()
    for name in uses if groups else ():
        of_it = sum(row.get(f"blend/{name}", 0.0) * row.get("groups_sampled", 0.0) for row in rows)
        drawn[name] = min(1.0, of_it / groups)  # a sum of floats may be a little more
    tokens = _shares(_taught(rows))
    for name, share in zip(table.task_blend.names, table.task_blend.shares, strict=True):
        if share:
            asked = BlendShare(name=name, by="tasks", asked=float(share))
            yield _with(uses[name].model_copy(update={"share": asked}), drawn, tokens)


def _made(environment: str, args: Mapping[str, Any], seeds: SeedRange) -> DataUse:
    """Tasks that are made as they are needed."""
    by = {"environment": environment, "args": dict(args), "seeds": list(seeds)}
    return DataUse(source=f"{environment}, seeds {seeds[0]} to {seeds[1] - 1}", sha256=json_sha256(by))


def _replayed(run: Run, uses: Sequence[DataUse], rows: Rows) -> Iterator[DataUse]:
    """The demonstrations that were learned beside episodes."""
    shown = run.session.loop.updates.demonstrations
    if shown is None:
        return
    learned = int(rows[-1]["replay_position"]) if rows else 0
    drawn = shown.stream.shares(learned) if learned else {}
    tokens = _shares(shown.stream.taught(learned)) if drawn else {}
    for use in uses:
        yield _with(use, drawn, tokens).model_copy(update={"replayed": True})


def _with(use: DataUse, drawn: Mapping[str, float], tokens: Mapping[str, float]) -> DataUse:
    """A source of a blend with the shares that it had, by its name."""
    if use.share is None:
        return use
    had = {"drawn": drawn.get(use.share.name), "tokens": tokens.get(use.share.name)}
    return use.model_copy(update={"share": use.share.model_copy(update=had)})


def _taught(rows: Rows) -> dict[str, float]:
    """The trained tokens of each source."""
    found = dict[str, float]()
    for row in rows:
        for name, value in row.items():
            if name.startswith("blend_tokens/"):
                found[name.removeprefix("blend_tokens/")] = found.get(name.removeprefix("blend_tokens/"), 0.0) + value
    return found


def _shares(counts: Mapping[str, float]) -> dict[str, float]:
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items()} if whole else {}
