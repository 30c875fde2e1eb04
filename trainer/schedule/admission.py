"""How many groups may be under way, and when a step has what it trains on.

A group is open from when it is issued until it was trained or dropped. With P groups a step and a staleness of S:
    sync, one_step_off    a step's groups are issued together, and another in the place of each that teaches nothing; the step waits for all
                          of them. one_step_off issues the next step's before the learner begins with this one's
    async                 (S + 1) P groups are open at all times. A step takes the P oldest that have finished, unless one that it would
                          leave under way could then not be trained within S moves of the weights: that one is waited for. While the
                          learner has them they count as P, however few they are: S P others can be trained in time, and no more

A group that has ended without training is in none of these counts. It stays open for the books and a checkpoint until a step takes it,
since only a step's rows hold its episodes: a run that goes on from there plays it again.

So no group ever becomes too old, however long it takes, and none is thrown away for it: what is trained is as long as what is issued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ...envs.types import Episode, EpisodeGroup
from ...rollout.store.ledger import DropReason
from .metrics import Collected
from .progress import Issued

Rollouts = Literal["sync", "one_step_off", "async"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A group that has finished and can be learned from. cut_short: its members that are masked; sampled: all of it."""

    learned: EpisodeGroup
    cut_short: tuple[Episode, ...]
    sampled: EpisodeGroup


def in_time(left: Iterable[int], moves: int, staleness: int, per_step: int) -> bool:
    """Whether groups that are left over, each issued at one of the moves `left`, can all be trained before they are too old.

    moves: how often the weights have moved. Each later step trains `per_step` of them, the oldest first; the next one trains after one
    more move, and a group is too old once the weights have moved more than `staleness` times since it was issued.
    Example: `in_time([0, 0, 1], moves=1, staleness=2, per_step=1)` is False: of the two issued at 0, one would train three moves later.
    """
    return all(move + staleness - moves > number // per_step for number, move in enumerate(sorted(left)))


@dataclass
class Admission:
    """What is open. per_step: P. tries: groups that a step may try to have P to train on. staleness: S. rollouts: see the module.

    By the id of their task: waiting: what has finished and can be learned from; training: what the learner has; ended: what ends without
    training, and why, once a step takes it; again: what a checkpoint has open and is yet to be issued again. issued: groups that were
    issued for the step to come.
    """

    per_step: int
    tries: int
    staleness: int
    rollouts: Rollouts
    open: dict[str, Issued]
    waiting: dict[str, Waiting] = field(default_factory=dict)
    training: dict[str, Waiting] = field(default_factory=dict)
    ended: dict[str, tuple[Waiting, DropReason]] = field(default_factory=dict)
    again: dict[str, Issued] = field(default_factory=dict)
    issued: int = 0

    @property
    def under_way(self) -> dict[str, Issued]:
        """What the fleet has, not finished."""
        elsewhere = self.waiting.keys() | self.training.keys() | self.ended.keys() | self.again.keys()
        return {task: one for task, one in self.open.items() if task not in elsewhere}

    def room(self, steps_left: int) -> int:
        """How many groups may be issued now. steps_left: this one included, so that the last leaves nothing; below 1, there is no last."""
        taken = len(self.open) - len(self.ended) - len(self.again)
        if self.rollouts == "async":
            ahead = min(self.staleness + 1, steps_left) if steps_left > 0 else self.staleness + 1
            not_replaced = max(0, len(self.ended) - (self.tries - self.per_step))
            missing = self.per_step - len(self.training) if self.training else 0
            return max(0, ahead * self.per_step - not_replaced - missing - taken)
        return min(self.per_step - taken + len(self.training), self.tries - self.issued)

    def is_ready(self, moves: int) -> bool:
        """Whether a step has what it trains on. moves: how often the weights have moved."""
        left = self.under_way
        if not left or self.rollouts != "async":
            return not left
        taken = self._oldest()
        if len(taken) < self.per_step and len(self.ended) + len(taken) < self.tries:
            return False
        if not taken:
            return True  # a step without an update moves no weights, so nothing gets older
        over = [self.open[task].move for task in self.waiting if task not in taken]
        return in_time([*over, *(one.move for one in left.values())], moves, self.staleness, self.per_step)

    def take(self) -> Collected:
        """What this step trains on, and all groups that have ended for it; what comes from now on is gathered for the next one."""
        assert not self.training, "the learner has the groups of another step"
        self.training = {task: self.waiting.pop(task) for task in self._oldest()}
        trained, ended = list(self.training.values()), self.ended
        sampled = [one.sampled for one in (*(one for one, _ in ended.values()), *trained)]
        for task in ended:
            del self.open[task]
        self.ended, self.issued = {}, 0
        return Collected(_by_task(one.learned for one in trained), _by_task(sampled), Counter(reason for _, reason in ended.values()))

    def drop(self, task: str, reason: DropReason) -> None:
        """A group that has finished ends without training, with the step that takes it: until then a checkpoint has it open, since no
        step has stored it."""
        self.ended[task] = self.waiting.pop(task), reason

    def trained(self) -> None:
        """The learner is done with the groups of this step."""
        for task in self.training:
            del self.open[task]
        self.training = {}

    def _oldest(self) -> list[str]:
        """Of what is waiting: the oldest first, and of those of one age the first to finish; as many as a step trains."""
        return sorted(self.waiting, key=lambda task: self.open[task].move)[: self.per_step]


def _by_task(groups: Iterable[EpisodeGroup]) -> tuple[EpisodeGroup, ...]:
    """In an order that the one they finish in does not decide: nor does it that of float sums, then."""
    return tuple(sorted(groups, key=lambda group: group.task.id))
