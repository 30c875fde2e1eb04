"""The ledger: every (task, sample) that is issued ends exactly once, and the run stops when the books do not balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...envs.failures import Failure, FailureKind
from ...envs.types import Episode, EpisodeGroup
from .records import LedgerRow

DropReason = Literal["zero_variance", "too_few", "failed_member", "surplus", "no_tokens", "non_finite", "cut_short", "stale"]
"""Why an episode did not train: all rewards of its group were equal; fewer than two of its group were rewarded, or fewer than a
group reward compares; a member of its group failed and the recipe drops such groups; its phase ended before it was trained, or a guard sent
the run back to where it was open; its policy ran out of time before it had said anything in any of them; the update that it was part of was
not finite; a limit cut it short and the recipe masks such episodes; or the weights have moved too often since it was sampled."""


class LedgerError(AssertionError):
    """The books do not balance: an episode was lost, duplicated or never issued. The run must stop."""


@dataclass
class Ledger:
    """Counts what became of every episode issued for training.

    issued = trained + masked + dropped + open, at all times. `open` holds the ids in flight (or carried in a checkpoint).

    Example: `ledger.issue("train-17", 8)`, later `ledger.trained(episode)` for each of the eight.
    """

    issued: int = 0
    trained_count: int = 0
    masked: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    open: set[str] = field(default_factory=set)

    def issue(self, task_id: str, samples: int) -> None:
        """Note that `samples` episodes of a task were started. Raises LedgerError when one of them is in flight already."""
        ids = {f"{task_id}/{sample}" for sample in range(samples)}
        twice = ids & self.open
        if twice:
            raise LedgerError(f"episode {min(twice)} was issued twice")
        self.open |= ids
        self.issued += samples

    def trained(self, episode: Episode) -> None:
        self._close(episode.id)
        self.trained_count += 1

    def mask(self, episode: Episode, kind: FailureKind) -> None:
        """The infrastructure failed this episode; the rest of its group trains."""
        self._close(episode.id)
        self.masked[kind.value] += 1

    def drop(self, episode: Episode, reason: DropReason) -> None:
        self._close(episode.id)
        self.dropped[reason] += 1

    def give_up(self, task_ids: Collection[str], reason: DropReason) -> None:
        """Close all episodes of these tasks that are open, finished or not."""
        for episode_id in [one for one in self.open if one.rpartition("/")[0] in task_ids]:
            self._close(episode_id)
            self.dropped[reason] += 1

    def settle(self, trained: Iterable[EpisodeGroup]) -> None:
        """Close whole groups that went into an update: rewarded episodes were trained, failed ones masked."""
        for group in trained:
            for episode in group.episodes:
                if isinstance(episode.outcome, Failure):
                    self.mask(episode, episode.outcome.kind)
                else:
                    self.trained(episode)

    def drop_group(self, group: EpisodeGroup, reason: DropReason) -> None:
        """Close a whole group that did not train; its failed members count as masked, under their own cause."""
        for episode in group.episodes:
            if isinstance(episode.outcome, Failure):
                self.mask(episode, episode.outcome.kind)
            else:
                self.drop(episode, reason)

    def check(self, in_flight: int = 0) -> None:
        """Raise LedgerError unless the books balance with exactly `in_flight` episodes open."""
        closed = self.trained_count + self.masked.total() + self.dropped.total()
        if self.issued != closed + len(self.open) or len(self.open) != in_flight:
            raise LedgerError(
                f"the ledger does not balance: {self.issued} issued, {self.trained_count} trained, {self.masked.total()} masked, "
                f"{self.dropped.total()} dropped, {len(self.open)} open of {in_flight} in flight"
                + (f" (for example {min(self.open)})" if self.open else "")
            )

    def row(self) -> dict[str, Any]:
        """Everything as JSON: the counts, the causes, and the ids that are open. `from_row` reads it back."""
        return {
            "issued": self.issued,
            "trained": self.trained_count,
            "masked": dict(sorted(self.masked.items())),
            "dropped": dict(sorted(self.dropped.items())),
            "open": sorted(self.open),
        }

    def record(self, phase: str, step: int) -> LedgerRow:
        """The counts after a step, as stored in `ledger.jsonl`."""
        return LedgerRow(
            phase=phase,
            step=step,
            issued=self.issued,
            trained=self.trained_count,
            masked=dict(sorted(self.masked.items())),
            dropped=dict(sorted(self.dropped.items())),
            carried=len(self.open),
        )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Ledger:
        """The inverse of `row`. Raises LedgerError when the stored books do not balance."""
        ledger = cls(row["issued"], row["trained"], Counter(row["masked"]), Counter(row["dropped"]), set(row["open"]))
        ledger.check(in_flight=len(ledger.open))
        return ledger

    def _close(self, episode_id: str) -> None:
        if episode_id not in self.open:
            raise LedgerError(f"episode {episode_id} is closed, but it is not open: it was never issued, or has ended before")
        self.open.remove(episode_id)
