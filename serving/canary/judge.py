"""The judge of a canary: the reward or verifier that trained the model, on one exchange of live traffic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ...envs.failures import EpisodeFailure
from ...envs.registry import load_plugin
from ...envs.types import Task, message_from_dict
from ...rewards.build import make_reward
from ...rewards.types import RewardInput, Scorer, compares
from .config import JudgeTable


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What was asked and answered. id: of the answer. cut: whether it was cut short.

    Example: `JudgedAnswer("chatcmpl-1", [{"role": "user", "content": "2 + 2?"}], {"role": "assistant", "content": "4"})`.
    """

    id: str
    messages: list[dict[str, Any]]
    answer: dict[str, Any]
    cut: bool = False


class CanaryJudge:
    """Scores exchanges, as a deployment of Ray Serve: somebody's code does not run where all requests go through.

    Raises ValueError when the reward is unknown, its options are wrong, or it compares attempts with each other.
    """

    def __init__(self, table: JudgeTable) -> None:
        self._scorer = judge_of(table)

    async def score(self, exchange: JudgedAnswer) -> tuple[float | None, str]:
        """The value of an answer; None, and why, where there is none."""
        try:
            return (await self._scorer.score(reward_input(exchange))).value, ""
        except EpisodeFailure as error:
            return None, error.failure.line


def judge_of(table: JudgeTable) -> Scorer:
    """The scorer that a table names. Raises ValueError as `CanaryJudge` does."""
    for file in table.plugins:
        load_plugin(file)
    scorer = make_reward(table.reward)
    if compares(scorer):
        raise ValueError(f"judge {table.use!r} compares attempts at one task with each other; live traffic has one of each")
    return cast(Scorer, scorer)


def reward_input(exchange: JudgedAnswer) -> RewardInput:
    """An exchange as rewards see an episode: what was asked is the task, and nothing more is known of it."""
    asked = tuple(message_from_dict(row) for row in exchange.messages)
    task = Task(exchange.id, 0, asked)
    cut = "max_tokens" if exchange.cut else None
    return RewardInput(exchange.id, task, (*asked, message_from_dict(exchange.answer)), 0.0, {}, {"turns": 1.0}, {}, cut)
