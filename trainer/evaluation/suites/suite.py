"""Suites: named, versioned sets of held-out items, and how an answer to one is scored.

A suite comes from a distribution that lists it under the entry-point group `burnish.suites`, from a plug-in file that calls
`register_suite`, or from a TOML file (`files.read_suite`). Its items are tasks that an environment plays and rewards judge, or texts whose
perplexity is taken. An environment, its rewards and its tools are found as everywhere else; a suite adds none of its own kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ....envs.callables import source_of
from ....envs.registry import Registry, check_id
from ....envs.types import Task
from ....rewards.config import RewardConfig
from ....rollout.worker import BlendedEnvironment
from ....rpc.address import SERVICE, service_references
from ...data.forms import Document

SINGLE_TURN = "burnish/SingleTurn-v0"

SuiteKind = Literal["answers", "texts"]


@dataclass(frozen=True)
class Suite:
    """A set of held-out items. Exactly one of tasks and texts: each gives the first `count` items, the same ones every time.

    about: what it measures, in a sentence. items: how many are taken unless somebody asks for fewer or more.
    environment, environment_args: who plays the tasks; rewards: who judges them, beside the environment's own reward; success: the part
    that is an item's score, in [0, 1]. right: the least score of an answer that counts as right. chance: the share that guessing gets
    right.
    max_turns, max_tokens: of an episode, and of each of its turns.

    Example: `Suite("my-team/sums-v1", "Sums below 10.", tasks=sums, environment="burnish/Arithmetic-v0")`.
    """

    id: str
    about: str
    items: int = 100
    tasks: Callable[[int], Sequence[Task]] | None = None
    texts: Callable[[int], Sequence[Document]] | None = None
    environment: str = SINGLE_TURN
    environment_args: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[RewardConfig, ...] = ()
    success: str = "env"
    right: float = 1.0
    chance: float = 0.0
    max_turns: int = 1
    max_tokens: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError for what makes no sense together."""
        check_id(self.id, "suite")
        if (self.tasks is None) == (self.texts is None):
            raise ValueError(f"suite {self.id}: needs exactly one of tasks, which are played and judged, and texts, which are only read")
        if not 0 <= self.chance < 1:
            raise ValueError(f"suite {self.id}: chance is the share that guessing gets right, from 0 to below 1, not {self.chance:g}")
        if not 0 < self.right <= 1:
            raise ValueError(f"suite {self.id}: right is the least score that counts as right, above 0 and at most 1, not {self.right:g}")
        for name in ("items", "max_turns", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"suite {self.id}: {name} must be at least 1, not {getattr(self, name)}")
        given = {"environment_args": self.environment_args, "rewards": [one.verifier for one in self.rewards]}
        named = [f"{where}: {SERVICE}{name}" for where, value in given.items() for name in service_references(value)]
        if named:
            raise ValueError(f"suite {self.id}: {named[0]} is a service of a recipe; give the host:port of one that runs")

    @property
    def kind(self) -> SuiteKind:
        return "answers" if self.tasks is not None else "texts"

    @property
    def played_by(self) -> BlendedEnvironment:
        """Who plays its tasks, among the environments of a rollout worker; the tasks name it as their `environment`."""
        limits = {"max_turns": self.max_turns, "max_tokens_per_turn": self.max_tokens}
        return BlendedEnvironment(self.id, self.environment, self.environment_args, self.rewards, limits, self.success)

    @property
    def file(self) -> str:
        """What files of its results are called, without a suffix. Example: "burnish--choices-v1"."""
        return file_name(self.id)


SUITES: Registry[Suite] = Registry("suite", "burnish.suites")


def register_suite(suite: Suite) -> Suite:
    """Add a suite to those that can be named, from a plug-in file. Raises ValueError when another source holds its id."""
    maker = suite.tasks or suite.texts
    assert maker is not None
    return SUITES.register(suite.id, suite, source_of(maker))


def file_name(id: str) -> str:
    """A suite's id as the name of a file: ids hold nothing else that a file's name may not."""
    return id.replace("/", "--")
