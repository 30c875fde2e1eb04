"""Skills that a run must not lose: its suites under the base, twice, and after every phase, and the gate that follows from them.

RUN/retention.jsonl                         a line per phase and suite
RUN/suites/base/, base-again/, PHASE/       every sample (`trainer.evaluation.suites.scores`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import RetentionRow, read_retention
from burnish.run.display import StepBar, say
from burnish.run.folder import RunFolder
from burnish.session import Session
from burnish.trainer.evaluation.config import RetentionConfig
from burnish.trainer.evaluation.drift import kl_to_base
from burnish.trainer.evaluation.suites.gate import retention_row
from burnish.trainer.evaluation.suites.measure import Asking, measure
from burnish.trainer.evaluation.suites.scores import RESULTS, Scores, read_scores, write_scores
from burnish.trainer.evaluation.suites.suite import Suite
from burnish.trainer.models.checkpoints import latest, refuse_promotion
from burnish.trainer.models.folder import vocabulary_of

BASE, BASE_AGAIN = "base", "base-again"


@dataclass(frozen=True)
class Retention:
    """The `[retention]` of a run under way."""

    table: RetentionConfig
    session: Session
    folder: RunFolder
    console: Console

    def measure_base(self) -> None:
        """Measure the base twice, with other random numbers the second time; what has been measured is not measured again."""
        for name in (BASE, BASE_AGAIN):
            self._scores(name)

    def judge(self, phase: str, step: int) -> list[RetentionRow]:
        """Measure the policy at the end of a phase, say which skills it kept, and refuse its checkpoint the promotion where it lost one.

        Returns a row per suite. A phase that was judged is not judged again.
        """
        known = [row for row in recorded(self.folder) if (row.phase, row.step) == (phase, step)]
        if known:
            return known
        base, again, after = (self._scores(name) for name in (BASE, BASE_AGAIN, phase))
        recipe, kl = self.session.recipe, self._kl()
        limits = recipe.phase(phase).held_to(self.table)
        rows = [retention_row(phase, step, base[suite], again[suite], after[suite], limits, recipe.seed, kl) for suite in after]
        refused = [row for row in rows if row.not_promoted]
        for row in rows:
            say(self.console, row.line)
        if kl is not None:
            say(self.console, f"after {phase}, KL to the base on held-out tasks: {kl:.4f} nats per token")
        checkpoint = latest(self.folder.path, phase)
        if refused and checkpoint is not None:
            refuse_promotion(self.folder.path, checkpoint, "; ".join(row.not_promoted for row in refused))
            say(self.console, f"checkpoint {checkpoint.name} is kept and not promoted: it lost {', '.join(row.suite for row in refused)}")
        self.folder.log_retention(rows)
        return rows

    def _kl(self) -> float | None:
        """How far the policy is from the base on the recipe's own held-out tasks, where the base was sampled on them."""
        file = self.folder.episodes / Moment(BASE, 0, "heldout", "sampled").file
        recipe = self.session.recipe
        if recipe.rollout.temperature != 1 or not file.is_file():
            return None
        self.session.loop.settle()
        return kl_to_base(self.session.algo.fleet, file, recipe.engine.max_context, vocabulary_of(self.session.base))

    def _scores(self, name: str) -> dict[str, Scores]:
        """The suites under the weights that the engines hold, or as they were measured before an interruption."""
        place = self.folder.suites / name
        if (place / RESULTS).is_file():
            return read_scores(place)
        asking = Asking(self.table.items, self.table.samples, self.table.temperature, again=name == BASE_AGAIN)
        found = [self._measured(suite, name, asking) for suite in self.session.recipe.suites]
        write_scores(place, found, name)
        return {scores.suite: scores for scores in found}

    def _measured(self, suite: Suite, name: str, asking: Asking) -> Scores:
        session = self.session
        session.loop.settle()
        with StepBar(self.console, f"{suite.id} {name}", asking.size(suite)) as bar:
            return measure(
                session.algo.fleet,
                suite,
                asking,
                session.base,
                session.recipe.engine.max_context,
                lambda: bar.advance(""),
                session.version,
            )


def recorded(folder: RunFolder) -> Sequence[RetentionRow]:
    """Every row of a run, none before its first phase was judged."""
    return read_retention(folder.retention_file) if folder.retention_file.is_file() else []


def is_judged(folder: RunFolder, run: ResolvedRun, phase: str, step: int) -> bool:
    """Whether what `[retention]` asks of the end of a phase was measured."""
    return run.retention is None or any((row.phase, row.step) == (phase, step) for row in recorded(folder))
