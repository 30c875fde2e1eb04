"""The conformance checker is content with what burnish brings along, and finds each thing an environment can get wrong."""

from __future__ import annotations

import random
import threading
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from burnish.envs.builtin.arithmetic import Arithmetic
from burnish.envs.checks.environment import CHECKS, Check, Report, check_environment, render
from burnish.envs.contract import ENVS, make_env, register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tools import ToolSet, tool
from burnish.envs.types import Message

pytestmark = pytest.mark.unit

REPLIES = {
    "burnish/Blackjack-v0": ["hit"],
    "burnish/CartPole-v0": ["left", "left", "right"],
    "burnish/ContentModeration-v0": ["rule 2: remove"],
    "burnish/FrozenLake-v0": ["down", "right"],
    "burnish/QualityInspection-v0": ['spec("bore")', "scrap bore", "verdict: scrap; reason: undersize"],
    "burnish/Taxi-v0": ["north", "pick up", "west", "drop off"],
}
ELSEWHERE = {
    "burnish/ReasoningGym-v0",  # needs a package: tests/unit/test_envs_reasoning_gym.py
    "burnish/Remote-v0",  # needs a service: tests/integration/test_env_service.py
    "burnish/SingleTurn-v0",  # needs a task with a prompt: tests/unit/test_envs_single_turn.py
}
BUILT_IN = sorted({listing.id for listing in ENVS.list() if listing.id.startswith("burnish/")} - ELSEWHERE)


@pytest.mark.parametrize("id", BUILT_IN)
def test_every_built_in_environment_keeps_the_contract(id: str) -> None:
    # other_process: in tests/integration/test_check.py, for all of them
    report = check_environment(id, seeds=(0, 1, 2), replies=REPLIES.get(id, []), other_process=False)
    assert report.passed, render(report)
    assert [check.name for check in report.checks if check.status == "skip"] == ["another process"]
    assert [check.name for check in report.checks] == list(CHECKS)
    assert set(report.latency_ms) == {f"{what} p{q}" for what in ("reset", "step") for q in (50, 95, 99)}


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("id", BUILT_IN)
def test_gymnasiums_checker_is_content(id: str) -> None:
    check_env(make_env(id))


class Guess(gymnasium.Env[Any, str]):
    """Three guesses; whether it was right is said with the last one only."""

    observation_space, action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.left, self.secret = 3, str(self.np_random.integers(5))
        return (Message("user", f"Guess. A hint: {self.secret}"),), {}

    def step(self, action: str) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ResetNeeded("the episode is over")
        won = action == self.secret
        over = won or self.left == 0
        return (() if over else (Message("user", "No."),)), float(won), over, False, {"reward_parts": {"won": float(won)}} if over else {}


def test_a_part_that_an_episode_cut_short_would_lack_is_found() -> None:
    report = check_environment(Guess)
    assert [check.name for check in report.checks if check.status == "fail"] == ["reward parts"]
    assert 'declare what is not given with every step, by an attribute reward_parts = ("won",)' in found(report, "reward parts").detail

    class Declared(Guess):
        reward_parts = ("won",)

    report = check_environment(Declared)
    assert report.passed, render(report)
    assert found(report, "reward parts").detail == "won; also when an episode is cut short"


def test_a_tool_environment_made_by_hand_passes() -> None:
    @tool
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    report = check_environment(lambda: ToolEnv(Arithmetic(), ToolSet([add])), replies=["add(1, 2)", "add(1, )", "add(", "add(x)"])
    assert report.passed, render(report)
    assert found(report, "spec") == Check("spec", "skip", "a factory was given; register it to name it in a recipe")


class Unseeded(Arithmetic):
    """Draws its tasks from the process's own random state."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=random.randrange(10**6))


class SameTask(Arithmetic):
    """Ignores its seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=7)


class Fragile(Arithmetic):
    """Believes that the policy answers with a number."""

    def step(self, action: str) -> Any:
        int(action)
        return super().step(action)


class FourTuple(Arithmetic):
    def step(self, action: str) -> Any:
        return super().step(action)[:4]


class Forgiving(Arithmetic):
    """Goes on after the end."""

    def step(self, action: str) -> Any:
        return (), 0.0, True, False, {}


class Misspelt(Arithmetic):
    def step(self, action: str) -> Any:
        *result, _ = super().step(action)
        return (*result, {"metric": {"cost": 1.0}})


class NotJson(Arithmetic):
    def step(self, action: str) -> Any:
        *result, _ = super().step(action)
        return (*result, {"data": {"truth": {1, 2}}})


class Shared(Arithmetic):
    """Keeps the answer on the class, so that instances disturb each other."""

    answer: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        out = super().reset(seed=seed)
        type(self).answer = self._answer
        return out

    def step(self, action: str) -> Any:
        super().step(action)
        return (), float(type(self).answer), True, False, {}


class ThreadBound(Arithmetic):
    """Can be stepped only where it was reset, as a SQLite connection can."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.thread = threading.get_ident()
        return super().reset(seed=seed)

    def step(self, action: str) -> Any:
        if threading.get_ident() != self.thread:
            raise RuntimeError("wrong thread")
        return super().step(action)


class ListOfMessages(Arithmetic):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        messages, info = super().reset(seed=seed)
        return list(messages), info


class CloseOnce(Arithmetic):
    closed = False

    def close(self) -> None:
        assert not self.closed, "already closed"
        self.closed = True


class Endless(gymnasium.Env[Any, str]):
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space, action_space = Arithmetic.observation_space, Arithmetic.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return (Message("user", str(self.np_random.integers(10**6))),), {}

    def step(self, action: str) -> Any:
        return (Message("user", "And?"),), 0.0, False, False, {}


def found(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


@pytest.mark.parametrize(
    ("factory", "check", "detail"),
    [
        (Unseeded, "determinism", "seed 0, played twice with the same replies: reset differs"),
        (SameTask, "seeds differ", "draw the task from self.np_random"),
        (Fragile, "hostile text", "makes step fail: ValueError: invalid literal"),
        (FourTuple, "five-tuple", "not a tuple of 4"),
        (Forgiving, "step after end", "a step after the end is accepted"),
        (Misspelt, "info", "did you mean 'metrics'?"),
        (NotJson, "info", "must be JSON"),
        (Shared, "independence", "alone and beside another environment: step 1 differs"),
        (ThreadBound, "threads", "wrong thread"),
        (ListOfMessages, "gymnasium", "not within the observation space"),
        (ListOfMessages, "five-tuple", "must be a tuple of Message, not list"),
        (CloseOnce, "close", "already closed"),
    ],
)
def test_each_fault_is_found_and_named(factory: Any, check: str, detail: str) -> None:
    report = check_environment(factory, seeds=(0, 1, 2))
    assert not report.passed
    assert not report.latency_ms
    assert found(report, check).status == "fail"
    assert detail in found(report, check).detail


def test_one_instance_for_all_is_found() -> None:
    only = Arithmetic()
    assert "same environment twice" in found(check_environment(lambda: only), "independence").detail


def test_an_environment_that_hangs_is_reported_and_not_waited_for() -> None:
    release = threading.Event()

    class Hangs(Arithmetic):
        def step(self, action: str) -> Any:
            release.wait()
            return super().step(action)

    report = check_environment(Hangs, deadline_s=0.2)
    release.set()
    assert found(report, "five-tuple").detail == "no end after 0.2 s; something in reset, step or close waits without a deadline"


def test_what_does_not_apply_is_skipped_and_says_why() -> None:
    report = check_environment(Endless)
    assert report.passed, render(report)
    assert "did not end within 200 steps" in found(report, "step after end").detail
    assert found(check_environment(SameTask, single_start=True), "seeds differ").status == "skip"


def test_kwargs_that_no_recipe_can_hold_are_found() -> None:
    register_env("test/Adding-v0", Arithmetic)
    report = check_environment("test/Adding-v0", {"operations": {"+"}}, other_process=False)
    assert "cannot be written in a recipe" in found(report, "spec").detail


def test_a_factory_that_cannot_be_imported_is_found() -> None:
    register_env("test/Local-v0", lambda: Arithmetic())
    assert "importable module" in found(check_environment("test/Local-v0", other_process=False), "spec").detail


def test_mistakes_of_the_caller_are_errors() -> None:
    with pytest.raises(ValueError, match="at least two different seeds"):
        check_environment("burnish/Arithmetic-v0", seeds=(1, 1))
    with pytest.raises(ValueError, match="has no kwarg 'size'"):
        check_environment("burnish/Arithmetic-v0", {"size": 3})


def test_rendering() -> None:
    checks = (Check("five-tuple", "pass", "5 resets"), Check("info", "fail", "bad\nfirst 1"), Check("spec", "skip", "no id"))
    assert render(Report("x/Y-v0", checks, {"step p50": 0.25})) == (
        "x/Y-v0: FAILED\n"
        "  ok    five-tuple  5 resets\n"
        "  FAIL  info        bad\n"
        "                    first 1\n"
        "  skip  spec        no id\n"
        "  latency in ms: step p50 0.250"
    )
