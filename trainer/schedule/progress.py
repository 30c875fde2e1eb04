"""Where a run of policy steps is: what a checkpoint holds of the loop, and the budget of failures that looks back on its last steps."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...envs.types import EpisodeGroup
from ...rollout.config import RolloutConfig
from ...rollout.store.ledger import Ledger
from .groups import ErrorBudgetSpent, failures_of

MIN_FOR_BUDGET = 64
"""Episodes to judge the error budget on: a share of very few says nothing."""
BUDGET_STEPS = 4
"""Steps that the error budget looks back on, this one included; more, where they have fewer episodes than `MIN_FOR_BUDGET`."""
MAX_BUDGET_STEPS = 64
"""And no more than these, however small they are."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A group that was issued and has not ended. position: of its task in the stream. move: how often the weights had moved by then.

    Example: `Issued(position=17, move=3)`.
    """

    position: int
    move: int


@dataclass
class PolicyProgress:
    """Where a run of policy steps is: steps done, tasks taken from the stream, and the books of the phase.

    open: groups under way, or waiting for the step that trains or drops them, by the id of their task; a resumed run issues them again.
    moves: steps that moved the weights. versions: the learner's version after each of the last of them, as many as a token may be old and
    one. sequences: that the updates of the phase have gone over.

    idle, skipped, apart: steps in a row that had nothing to learn from, in which an update was not finite, or in which an engine's
    log-probabilities were too far from the learner's. recent: episodes, and failures by kind, of the steps that the error budget looks at.
    """

    step: int = 0
    position: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    idle: int = 0
    skipped: int = 0
    apart: int = 0
    recent: deque[tuple[int, Counter[str]]] = field(default_factory=lambda: deque(maxlen=MAX_BUDGET_STEPS))
    open: dict[str, Issued] = field(default_factory=dict)
    moves: int = 0
    versions: list[int] = field(default_factory=list)
    sequences: int = 0

    def begin_step(self) -> None:
        """Count what finishes from now on as the next step's."""
        self.recent.append((0, Counter()))

    def begin_phase(self) -> None:
        """Count the steps of another phase, in books of its own. Position and weights go on. Raises LedgerError when something is open."""
        self.ledger.check(in_flight=0)
        self.ledger = Ledger()
        self.step = self.idle = self.sequences = 0

    def give_up(self) -> None:
        """Drop what is open as surplus: nobody will train it."""
        self.ledger.give_up(self.open, "surplus")
        self.open.clear()

    def moved(self, version: int, staleness: int) -> None:
        """The weights are at `version` now. staleness: how many moves ago a token may have been sampled."""
        self.moves += 1
        self.versions = [*self.versions, version][-(staleness + 1) :]

    def went_back(self, version: int) -> None:
        """The weights are those of an earlier version again, and nothing is open that a later one sampled."""
        assert not self.open, "what is open was sampled by weights that are gone"
        self.versions = [version]

    def age(self, version: int) -> int:
        """How often the weights have moved since `version`; one more than a token may be old, where it is longer than that."""
        return sum(1 for later in self.versions if later > version)

    def row(self) -> dict[str, Any]:
        """Everything as JSON, for a checkpoint. `from_row` reads it back."""
        own = {name: getattr(self, name) for name in ("step", "position", "idle", "skipped", "apart", "moves", "versions", "sequences")}
        recent = [[episodes, dict(failed)] for episodes, failed in self.recent]
        issued = {task: [one.position, one.move] for task, one in self.open.items()}
        return {**own, "ledger": self.ledger.row(), "recent": recent, "open": issued}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PolicyProgress:
        """The inverse of `row`. Raises LedgerError when the stored books do not balance."""
        return cls(
            row["step"],
            row["position"],
            Ledger.from_row(row["ledger"]),
            row.get("idle", 0),
            row.get("skipped", 0),
            row.get("apart", 0),
            deque([(episodes, Counter(failed)) for episodes, failed in row.get("recent", ())], maxlen=MAX_BUDGET_STEPS),
            {task: Issued(*issued) for task, issued in row.get("open", {}).items()},
            row.get("moves", 0),
            list(row.get("versions", ())),
            row.get("sequences", 0),
        )

    def note(self, group: EpisodeGroup) -> None:
        """Note what failed, for the error budget."""
        episodes, failed = self.recent[-1]
        failed.update(failure.kind.value for failure in failures_of(group))
        self.recent[-1] = (episodes + len(group.episodes), failed)

    def check_budget(self, limits: RolloutConfig, cause: str) -> None:
        """Raise ErrorBudgetSpent when too large a share of the episodes of the last steps failed: of `BUDGET_STEPS`, or of as many as hold
        `MIN_FOR_BUDGET` episodes. cause: of the last failure."""
        episodes, failed = 0, Counter[str]()
        for back, (count, kinds) in enumerate(reversed(self.recent)):
            if back >= BUDGET_STEPS and episodes >= MIN_FOR_BUDGET:
                break
            episodes, failed = episodes + count, failed + kinds
        if episodes >= MIN_FOR_BUDGET and failed.total() > limits.error_budget * episodes:
            causes = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
            raise ErrorBudgetSpent(
                f"{failed.total()} of the last {episodes} episodes failed, "
                f"more than rollout.error_budget = {limits.error_budget:g} allows: {causes}; "
                f"the last one: {cause}"
            )

    def check_anything_came(self, sampled: Iterable[EpisodeGroup], limits: RolloutConfig, cause: str) -> None:
        """Raise ErrorBudgetSpent when every episode of the step failed, few as they may be: nothing was learned of the policy."""
        groups = list(sampled)
        failed = Counter(failure.kind.value for group in groups for failure in failures_of(group))
        if groups and limits.error_budget < 1 and failed.total() == sum(len(group.episodes) for group in groups):
            causes = ", ".join(f"{count} {kind}" for kind, count in failed.most_common())
            raise ErrorBudgetSpent(f"all {failed.total()} episodes of step {self.step + 1} failed: {causes}; one of them: {cause}")
