"""`burnish/SingleTurn-v0`: asks what the task asks, once."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs

from burnish.envs.checks.environment import check_environment, render
from burnish.envs.contract import make_env, reset_env, step_env
from burnish.envs.failures import EpisodeFailure
from burnish.envs.types import Message, Task

pytestmark = pytest.mark.unit

ID = "burnish/SingleTurn-v0"
TOOL = {"type": "function", "function": {"name": "add"}}


def task(seed: int = 0) -> Task:
    return Task(f"row-{seed}", seed, (Message("user", f"What is {seed} + 1?"),), {"reference_answer": seed + 1, "tools": [TOOL]})


def test_it_adds_nothing_to_the_prompt_and_ends_after_one_answer() -> None:
    env = make_env(ID)
    messages, info = reset_env(env, ID, task(), "row-0/0")
    assert (messages, info.tools) == ((), (TOOL,))
    step = step_env(env, ID, "1")
    assert (step.messages, step.reward, step.terminated, step.truncated) == ((), 0.0, True, False)
    with pytest.raises(ResetNeeded):
        env.step("again")


def test_a_task_without_a_prompt_says_what_is_missing() -> None:
    with pytest.raises(EpisodeFailure, match=r"asks the prompt of a task, and this one has none; give the recipe a table \[tasks\]"):
        reset_env(make_env(ID), ID, Task("train-1", 1))


def test_another_environment_must_still_ask_something() -> None:
    class Silent(gymnasium.Env[Any, Any]):
        def reset(self, **_: Any) -> Any:
            return (), {}

    assert reset_env(Silent(), "test/Silent-v0", task())[0] == ()
    with pytest.raises(EpisodeFailure, match="reset returned no message"):
        reset_env(Silent(), "test/Silent-v0", Task("t", 0))


class Asked(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """The environment as a rollout plays it: with a task, whose prompt comes before what `reset` returns."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        given = task(seed or 0)
        messages, info = self.env.reset(seed=seed, options={**(options or {}), "task": given})
        return (*given.prompt, *messages), info


def test_with_a_prompt_it_keeps_the_contract() -> None:
    report = check_environment(lambda: Asked(make_env(ID)), seeds=(0, 1, 2))
    assert report.passed, render(report)
