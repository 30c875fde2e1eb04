"""Measuring checkpoints by suites, outside of a run: an engine in this process, no learner, no Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from burnish.cluster import check_played
from burnish.envs.contract import check_env_args, unfit_tasks
from burnish.envs.printable import printable_json
from burnish.envs.pydantic_words import few_lines
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.worker import WorkerSetup
from burnish.run.display import StepBar, say
from burnish.trainer.evaluation.alone import STALL_S, lone_fleet
from burnish.trainer.evaluation.suites.measure import Asking, measure
from burnish.trainer.evaluation.suites.scores import Scores, read_scores, write_scores
from burnish.trainer.evaluation.suites.suite import SINGLE_TURN, Suite
from burnish.trainer.evaluation.suites.transitions import SuiteChange, change
from burnish.trainer.models.finding import verified_model
from burnish.trainer.models.manifest import own_manifest

CONTEXT = 1024
"""Tokens of a sequence at most, where the model takes as many."""


def evaluate_suites(
    checkpoint: str,
    suites: Sequence[Suite],
    asking: Asking,
    out: Path | None,
    console: Console,
    plugins: Sequence[Path] = (),
    threads: int = 1,
    stall_s: float | None = None,
) -> list[Scores]:
    """Measure a checkpoint by each suite, say what each amounts to, and write all into the new folder `out`.

    stall_s: seconds in which no call ends, until it stops; None is `alone.STALL_S`.

    Raises ValueError for what the user can put right, EvaluationFailed when too many samples failed.
    """
    if out is not None and out.exists():
        raise ValueError(f"{out} is there already, and results are never overwritten; give another --out")
    check_played([(suite.environment, suite.environment_args, suite.rewards) for suite in suites if suite.kind == "answers"], {})
    sizes = [_size(suite, asking) for suite in suites]
    model = verified_model(checkpoint)
    context, found = _context(model), list[Scores]()
    with lone_fleet(suite_setup(model, suites, context, plugins, threads), "evaluate", stall_s or STALL_S) as fleet:
        for suite, size in zip(suites, sizes, strict=True):
            with StepBar(console, suite.id, size) as bar:
                found.append(measure(fleet, suite, asking, model, context, lambda bar=bar: bar.advance("")))  # type: ignore[misc]
            say(console, found[-1].result().line)
    if out is not None:
        write_scores(out, found, checkpoint)
    return found


def suite_setup(model: Path, suites: Sequence[Suite], context: int, plugins: Sequence[Path] = (), threads: int = 1) -> WorkerSetup:
    """What an engine that asks these suites is built from. Chat templates get the variables that the model was trained with."""
    manifest = own_manifest(model)
    rollout = RolloutConfig(template_args=dict(manifest.template_args) if manifest is not None else {})
    return WorkerSetup(
        model,
        SINGLE_TURN,
        rollout=rollout,
        engine=EngineConfig(max_context=context, threads=threads if threads > 1 else None),
        plugins=tuple(str(plugin.resolve()) for plugin in plugins),
        blended=tuple(suite.played_by for suite in suites if suite.kind == "answers"),
    )


def changes_between(before: Mapping[str, Scores], after: Mapping[str, Scores]) -> list[SuiteChange]:
    """What became of each suite that both have, in the order of the first. Raises ValueError when they share none."""
    shared = [suite for suite in before if suite in after]
    if not shared:
        raise ValueError(f"nothing to compare: the one has {', '.join(before) or 'no suite'}, the other {', '.join(after) or 'none'}")
    return [change(before[suite], after[suite]) for suite in shared]


def compare_folders(before: Path, after: Path) -> list[SuiteChange]:
    """What became of each suite between two folders of results. Raises ValueError when one is none."""
    return changes_between(read_scores(before), read_scores(after))


def as_json(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as one JSON list, for `--json`."""
    return printable_json(rows, indent=2)


def _size(suite: Suite, asking: Asking) -> int:
    """How many items a suite is asked. Raises ValueError naming it when they cannot be had or played, before any engine starts."""
    try:
        if suite.kind == "answers" and suite.tasks is not None:
            check_env_args(suite.environment, suite.environment_args)
            unfit = unfit_tasks(suite.environment, ((task.id, task) for task in suite.tasks(asking.count(suite))))
            if unfit:
                raise ValueError(few_lines(unfit))
        return asking.size(suite)
    except ValueError as error:
        raise ValueError(f"suite {suite.id}: {error}") from None


def _context(model: Path) -> int:
    longest = json.loads((model / "config.json").read_bytes()).get("max_position_embeddings", CONTEXT)
    return int(min(longest, CONTEXT))
