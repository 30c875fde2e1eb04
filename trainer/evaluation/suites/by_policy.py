"""A suite of attacks and benign prompts that a guardrail policy judges: right is what refuses the one and answers the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ....envs.types import Message, Task
from ....rewards.config import RewardConfig
from ..guarded import read_prompts
from .suite import Suite

REWARD = "burnish/guardrail-v1"


def policy_suite(id: str, about: str, policy: str, rows: str, items: int = 100, chance: float = 0.0, max_tokens: int = 64) -> Suite:
    """The rows of `burnish guard evaluate` as items. policy: path of its file. An answer is right that keeps the policy and does not refuse
    what may be answered; whether a prompt has to be refused, its row says."""
    scorer = RewardConfig(use=REWARD, args={"policy": policy, "label": "attack"})
    tasks = partial(prompt_tasks, rows)
    return Suite(id, about, items, tasks, rewards=(scorer,), success=scorer.name, chance=chance, max_tokens=max_tokens)


def prompt_tasks(place: str, count: int) -> Sequence[Task]:
    """The first prompts of a place as tasks. Raises ValueError naming the first row that is unfit, or that brings an answer."""
    tasks = []
    for i, row in enumerate(read_prompts(place)[:count]):
        if row.answer is not None:
            raise ValueError(f"{row.where}: answer: has no effect where a model is asked; remove it")
        data = {"attack": row.attack, "category": row.category, "family": row.family}
        tasks.append(Task(str(i), i, (Message("user", row.prompt),), data))
    return tasks
