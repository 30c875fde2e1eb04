"""A suite in a TOML file:

    id = "my-team/support-v1"
    about = "Questions of last year's customers."
    rows = "support.jsonl"                     # as [tasks] has them; or texts = "manual.txt"; or environment and seeds
    reward = "my-team/right-v1"                # any reward, or [[rewards]] as in a recipe
    chance = 0.25

`rows`, `texts` and `policy` count from the file's folder; what rewards and environments read, from the folder that burnish is started in.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ....envs.pydantic_words import first_error
from ....envs.row_files import is_url
from ....envs.toml_text import as_json, read_toml
from ....envs.types import Task
from ....rewards.config import RewardConfig
from ...data.config import HELD_OUT_SEEDS, SeedRange
from ...data.forms import Document
from ...data.sources import Reject, found_in
from ...data.task_files import read_task_rows
from .by_policy import policy_suite, tasks_at
from .suite import SINGLE_TURN, Suite

LARGEST: Final = 1_000_000
"""Bytes of a suite file."""
JUDGING: Final = frozenset({"environment", "environment_args", "seeds", "reward", "rewards", "success", "right", "max_turns"})
"""Keys of a suite file that say who plays and who judges."""


class SuiteFile(BaseModel):
    """What a suite's file may say; `Suite` has what the keys mean that both have.

    rows: a file, a folder or a URL of rows as `[tasks]` takes them. texts: one of documents, whose perplexity is taken. environment: who
    plays the rows (`burnish/SingleTurn-v0` where it is left out), or, without rows, the tasks of `seeds`. reward: an id, in place of
    `[[rewards]]`. success: left out, the one reward, or "env" without any. policy: a guardrail policy that judges the rows, which are those
    of `burnish guard evaluate`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str
    about: str = Field(min_length=1)
    rows: str | None = None
    texts: str | None = None
    policy: str | None = None
    environment: str | None = None
    environment_args: dict[str, Any] = {}
    seeds: SeedRange | None = None
    reward: str | None = None
    rewards: tuple[RewardConfig, ...] = ()
    success: str | None = None
    items: int = 100
    right: float = 1.0
    chance: float = 0.0
    max_turns: int = 1
    max_tokens: int = 64

    @model_validator(mode="after")
    def _one_kind(self) -> SuiteFile:
        if self.texts is not None:
            self._refuse({"rows", "policy", "chance", *JUDGING}, "texts, which are only read")
            return self
        if self.policy is not None:
            self._refuse(JUDGING, "policy, which judges rows of one prompt each")
            if self.rows is None:
                raise ValueError("policy judges rows of prompts, as `burnish guard evaluate` takes them; say which by rows")
            return self
        if self.rows is None and self.environment is None:
            raise ValueError("needs rows (a file of tasks), texts (a file of documents) or an environment")
        if self.seeds is not None and self.rows is not None:
            raise ValueError("seeds have no effect beside rows, which are what is asked; remove one of them")
        if self.reward is not None and self.rewards:
            raise ValueError("reward is the short form of [[rewards]]; write one of them")
        if not self.scorers and self.environment in (None, SINGLE_TURN):
            raise ValueError('rows are judged by a reward; write reward = "namespace/name-v1" or [[rewards]]')
        if len(self.scorers) > 1 and self.success is None:
            raise ValueError("several rewards judge; say by success which part is an item's score")
        return self

    def _refuse(self, keys: Collection[str], beside: str) -> None:
        lost = sorted(self.model_fields_set.intersection(keys))
        if lost:
            raise ValueError(f"{lost[0]} has no effect beside {beside}; remove one of them")

    @property
    def scorers(self) -> tuple[RewardConfig, ...]:
        return (RewardConfig(use=self.reward),) if self.reward is not None else self.rewards


def read_suite(file: Path) -> Suite:
    """The suite of a file. Its rows are read when they are asked for. Raises ValueError naming the file and what is wrong."""
    if not os.path.isfile(file):
        raise ValueError(f"suite {file}: there is no such file")
    said = read_toml(file, LARGEST)
    try:
        return _suite(SuiteFile.model_validate_json(as_json(said), strict=True), file.parent)
    except ValidationError as error:
        raise ValueError(f"{file}: {first_error(error, SuiteFile)}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _suite(said: SuiteFile, folder: Path) -> Suite:
    about = {"id": said.id, "about": said.about, "items": said.items}
    if said.texts is not None:
        return Suite(**about, texts=partial(documents, _place(said.texts, folder)))  # type: ignore[arg-type]
    if said.policy is not None and said.rows is not None:
        policy = str(folder / said.policy)
        asked = tasks_at(_place(said.rows, folder), policy)
        return policy_suite(said.id, said.about, policy, asked, said.items, said.chance, said.max_tokens)
    by_seed = partial(seeded, said.seeds or HELD_OUT_SEEDS)
    tasks = by_seed if said.rows is None else partial(rows_of, _place(said.rows, folder))
    scorers = said.scorers
    return Suite(
        **about,  # type: ignore[arg-type]
        tasks=tasks,
        environment=said.environment or SINGLE_TURN,
        environment_args=said.environment_args,
        rewards=scorers,
        success=said.success or (scorers[0].name if scorers else "env"),
        right=said.right,
        chance=said.chance,
        max_turns=said.max_turns,
        max_tokens=said.max_tokens,
    )


def _place(place: str, folder: Path) -> str:
    return place if is_url(place) else str(folder / place)


def rows_of(place: str, count: int) -> Sequence[Task]:
    """The first rows of a place as tasks. Raises ValueError naming every row that is unfit."""
    return [Task(row.id, i, row.messages, row.data) for i, row in enumerate(read_task_rows(place)[:count])]


def seeded(seeds: SeedRange, count: int) -> Sequence[Task]:
    """The first seeds of a range as tasks."""
    return [Task(str(seed), seed) for seed in range(seeds[0], min(seeds[1], seeds[0] + count))]


def documents(place: str, count: int) -> Sequence[Document]:
    """The first documents of a place. Raises ValueError naming the first row that is unfit."""
    found: list[Document] = []
    for one in found_in(place, "cpt"):
        if isinstance(one, Reject):
            raise ValueError(str(one))
        if isinstance(one, Document):
            found.append(one)
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"{place}: holds no document")
    return found
