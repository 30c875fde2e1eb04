"""A suite of attacks and benign prompts that a guardrail policy judges: right is what refuses the one and answers the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ....envs.types import Task
from ....guardrails.policy import Policy, load_policy
from ....rewards.config import RewardConfig
from ..guarded import Prompt, asked_messages, read_prompts
from .suite import Suite

REWARD = "burnish/guardrail-v1"


def policy_suite(
    id: str, about: str, policy: str, tasks: Callable[[int], Sequence[Task]], items: int = 100, chance: float = 0.0, max_tokens: int = 64
) -> Suite:
    """The rows of `burnish guard evaluate` as items. policy: path of its file. An answer is right that keeps the policy and does not refuse
    what may be answered; whether a prompt has to be refused, its row says."""
    scorer = RewardConfig(use=REWARD, args={"policy": policy, "label": "attack"})
    return Suite(id, about, items, tasks, rewards=(scorer,), success=scorer.name, chance=chance, max_tokens=max_tokens)


def tasks_at(place: str, policy: str) -> Callable[[int], Sequence[Task]]:
    """What gives the first prompts of a place as tasks, each time it is asked. policy: path of its file."""
    return partial(_read_tasks, place, policy)


def _read_tasks(place: str, policy: str, count: int) -> Sequence[Task]:
    return prompt_tasks(read_prompts(place)[:count], load_policy(policy))


def prompt_tasks(rows: Sequence[Prompt], policy: Policy) -> list[Task]:
    """Prompts as tasks, with the context that they have. Raises ValueError naming the first row that brings an answer."""
    tasks = []
    for i, row in enumerate(rows):
        given = "answer" if row.answer is not None else "tool_calls" if row.calls else ""
        if given:
            raise ValueError(f"{row.where}: {given}: has no effect where a model is asked; remove it")
        data = {"attack": row.attack, "category": row.category, "family": row.family}
        tasks.append(Task(str(i), i, asked_messages(row, policy), data))
    return tasks
