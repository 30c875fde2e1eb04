"""Making environments by id, reading what they say, and naming the one that breaks the contract."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from burnish.envs.contract import ENVS, StepInfo, StepResult, make_env, read_reset, read_step, register_env, reset_env, step_env
from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.types import Message, Task, TextPart, ToolCall

pytestmark = pytest.mark.unit

ASK = (Message("user", "go on"),)


class Echo(gymnasium.Env[Any, str]):
    """Returns whatever it is told to return."""

    def __init__(self, step_result: Any = None, *, error: str = "") -> None:
        self.step_result, self.error = step_result, error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return ASK, {"data": {"seed": seed, "options": options}}

    def step(self, action: str) -> Any:
        if self.error:
            raise RuntimeError(self.error)
        return self.step_result


register_env("test/Echo-v0", Echo)


class Shy:
    """Says nothing of itself."""

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


SHY: Any = Shy()
CYCLE: list[Any] = []
CYCLE.append(CYCLE)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def says(content: Any, **more: Any) -> tuple[Message, ...]:
    return (Message("user", content, **more),)


def calls(arguments: Any) -> tuple[Message, ...]:
    return says("x", tool_calls=(ToolCall("c", "add", arguments),))


def test_gymnasium_makes_built_in_environments_by_module_and_id() -> None:
    env = gymnasium.make("burnish.envs:burnish/Arithmetic-v0", max_operand=3)
    messages, info = env.reset(seed=1)
    assert messages[0].text.startswith("What is ")
    assert abs(info["data"]["answer"]) <= 6


def test_make_env_records_id_and_kwargs_in_a_spec_that_is_json() -> None:
    env = make_env("burnish/Arithmetic-v0", max_operand=20)
    assert env.spec is not None
    row = json.loads(env.spec.to_json())
    assert (row["id"], row["entry_point"], row["kwargs"]) == (
        "burnish/Arithmetic-v0",
        "burnish.envs.builtin.arithmetic:Arithmetic",
        {"max_operand": 20},
    )
    assert make_env("burnish/Arithmetic-v0") is not make_env("burnish/Arithmetic-v0")


@pytest.mark.parametrize(
    ("id", "kwargs", "sentence"),
    [
        ("burnish/Aritmetic-v0", {}, "environment 'burnish/Aritmetic-v0' is unknown; did you mean 'burnish/Arithmetic-v0'"),
        ("burnish/Arithmetic-v7", {}, "no such version; there is burnish/Arithmetic-v0"),
        (
            "burnish/Arithmetic-v0",
            {"max_operant": 3},
            r"Arithmetic-v0' has no kwarg 'max_operant'; did you mean 'max_operand'\? \(allowed are max_operand, operations\)",
        ),
        ("test/Echo-v0", {"zzz": 1}, r"has no kwarg 'zzz' \(allowed are step_result, error\)"),
        ("burnish/Arithmetic-v0", {"operations": ["/"]}, "operations must be some of"),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(id: str, kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_env(id, **kwargs)


def test_register_env_as_decorator_and_its_refusals() -> None:
    @register_env("test/Level-v0")
    def level(size: int, **kwargs: Any) -> Any:
        return Echo() if size else "not an environment"

    assert isinstance(make_env("test/Level-v0", size=1, anything=2), Echo)
    assert gymnasium.make("test/Level-v0", size=1, disable_env_checker=True).spec is not None
    with pytest.raises(ValueError, match="needs kwarg 'size'"):
        make_env("test/Level-v0")
    with pytest.raises(ValueError, match=r"returned str, not a gymnasium\.Env"):
        make_env("test/Level-v0", size=0)
    with pytest.raises(ValueError, match="registered twice"):
        register_env("test/Echo-v0", level)
    with pytest.raises(ValueError, match="no dot in the namespace"):
        register_env("a.b/Echo-v0", Echo)
    with pytest.raises(ValueError, match="namespace/name-vN"):
        register_env("Echo", Echo)


def test_the_catalogue_lists_built_in_environments() -> None:
    ids = {listing.id for listing in ENVS.list()}
    assert {"burnish/Arithmetic-v0", "burnish/FrozenLake-v0", "burnish/Gymnasium-v0"} <= ids


def test_importing_environments_is_light() -> None:
    code = (
        "import sys, burnish.envs, burnish.envs.tool_env, burnish.envs.checks.environment\n"
        "print(sorted({'torch', 'ray', 'grpc', 'vllm', 'transformers', 'burnish.envs.builtin.arithmetic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_step_info_reads_the_five_keys_and_leaves_others_alone() -> None:
    info = StepInfo.read(
        {
            "tools": [{"type": "function"}],
            "reward_parts": {"correct": np.float32(0.5)},
            "metrics": {"cost": 3},
            "labels": {"expected": "scrap"},
            "data": {"truth": [1]},
            "TimeLimit.truncated": True,
        }
    )
    assert info == StepInfo(({"type": "function"},), {"correct": 0.5}, {"cost": 3.0}, {"expected": "scrap"}, {"truth": [1]})
    assert type(info.reward_parts["correct"]) is float


def test_step_infos_add_reward_parts_and_replace_the_rest() -> None:
    first = StepInfo(({"name": "t"},), {"a": 1.0, "b": 0.5}, {"cost": 1.0, "calls": 1.0}, {"expected": "x"}, {"k": 1, "l": 2})
    total = first.then(StepInfo((), {"a": 0.25, "c": -1.0}, {"cost": 3.0}, {"predicted": "y"}, {"k": 5}))
    assert total == StepInfo(
        ({"name": "t"},),
        {"a": 1.25, "b": 0.5, "c": -1.0},
        {"cost": 3.0, "calls": 1.0},
        {"expected": "x", "predicted": "y"},
        {"k": 5, "l": 2},
    )


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (None, "info must be a dict, not NoneType"),
        ({"tools": "measure"}, r'info\["tools"\] must be a list'),
        ({"reward_parts": [1.0]}, r'info\["reward_parts"\] must be a dict'),
        ({"reward_parts": {"a": float("nan")}}, r"\['a'\] must be a finite number, not nan"),
        ({"metrics": {"done": True}}, "finite number, not True"),
        ({"metrics": {1: 1.0}}, "string keys"),
        ({"labels": {"expected": 1}}, r'info\["labels"\]\[\'expected\'\] must be a string'),
    ],
)
def test_step_info_names_what_breaks_the_contract(info: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StepInfo.read(info)


def test_reset_env_hands_over_seed_task_and_episode() -> None:
    task = Task("t-9", 9)
    messages, info = reset_env(Echo(), "test/Echo-v0", task, "t-9/0")
    assert messages == ASK
    assert info.data == {"seed": 9, "options": {"task": task, "episode_id": "t-9/0"}}


def test_declared_reward_parts_are_zero_until_they_are_given() -> None:
    """So an episode that is cut short before the step that would give one has it all the same; wrappers hide nothing."""
    env = make_env("burnish/Arithmetic-v0")
    _, start = reset_env(gymnasium.Wrapper(env), "burnish/Arithmetic-v0", Task("t", 3))
    assert start.reward_parts == {"correct": 0.0}
    assert start.then(StepInfo(reward_parts={"correct": 1.0})).reward_parts == {"correct": 1.0}
    setattr(env, "reward_parts", "correct")  # noqa: B010
    with pytest.raises(EpisodeFailure, match=r"reward_parts must be a tuple of names, not 'correct'"):
        reset_env(env, "burnish/Arithmetic-v0", Task("t", 3))


def test_step_env_returns_a_checked_step() -> None:
    env = Echo((ASK, np.float64(0.5), np.bool_(False), False, {"metrics": {"cost": 2}}))
    assert step_env(env, "test/Echo-v0", "hi") == StepResult(ASK, 0.5, False, False, StepInfo(metrics={"cost": 2.0}))


@pytest.mark.parametrize(
    ("result", "detail"),
    [
        (None, r"step must return \(messages, reward, terminated, truncated, info\), not NoneType"),
        ((ASK, 0.0, True, {}), r"not a tuple of 4 \(tuple, float, bool, dict\)"),
        (("text", 0.0, True, False, {}), "messages must be a tuple of Message, not str"),
        (([Message("user", "x")], 0.0, True, False, {}), "must be a tuple of Message, not list"),
        (((), 0.0, False, False, {}), "no message though the episode goes on"),
        (((Message("assistant", "x"),), 0.0, True, False, {}), "only the policy writes those"),
        ((ASK, float("nan"), False, False, {}), "reward must be a finite number, not nan"),
        ((ASK, None, False, False, {}), "reward must be a finite number, not None"),
        ((ASK, True, False, False, {}), "reward must be a finite number, not True"),
        ((ASK, 0.0, 1, False, {}), "terminated must be a bool, not 1"),
        ((ASK, 0.0, False, None, {}), "truncated must be a bool, not None"),
        ((ASK, 0.0, False, False, {"labels": 3}), r'step: info\["labels"\] must be a dict'),
        ((ASK, 10**400, False, False, {}), "reward must be a finite number, not 1000"),
        ((ASK, 10**5000, False, False, {}), r"reward must be a finite number, not a int \(its repr cannot be read"),
        ((ASK, 0.0, False, False, {"reward_parts": {"won": 10**400}}), r'info\["reward_parts"\]\[\'won\'\] must be a finite number'),
        ((ASK, 0.0, False, False, {"metrics": {"cost": 10**400}}), r'info\["metrics"\]\[\'cost\'\] must be a finite number'),
        ((ASK, 0.0, SHY, False, {}), r"terminated must be a bool, not a Shy \(its repr cannot be read: ZeroDivisionError\)"),
        ((ASK, SHY, False, False, {}), "reward must be a finite number, not a Shy"),
        ((ASK, 0.0, False, False, {"labels": {"expected": SHY}}), "must be a string, not a Shy"),
        ((ASK, 0.0, False, False, {"metrics": SHY}), "must be a dict with string keys, not a Shy"),
        ((ASK, 0.0, False, False, {"data": {"x": SHY}}), r'info\["data"\]\[\'x\'\] is a Shy that cannot be written as text'),
        ((ASK, 0.0, False, False, {"data": {"x": 10**5000}}), "is a int that cannot be written as text"),
        ((ASK, 0.0, False, False, {"data": {"x": nested(3000)}}), "is nested more than 32 levels deep, or holds itself"),
        ((ASK, 0.0, False, False, {"data": {"x": CYCLE}}), "is nested more than 32 levels deep, or holds itself"),
        ((ASK, 0.0, False, False, {"tools": [{1: 2}]}), r'info\["tools"\]\[0\] has the key 1, which is not a valid string'),
        ((ASK, 0.0, False, False, {"tools": [{"a": {2}}]}), r'info\["tools"\]\[0\]\.a is a set, which JSON does not have'),
        ((says(5), 0.0, False, False, {}), "message 0: content must be a string or a tuple of TextPart, not 5"),
        ((says(None), 0.0, False, False, {}), "message 0: content must be a string or a tuple of TextPart, not None"),
        ((says((TextPart(SHY),)), 0.0, False, False, {}), "content must be a string or a tuple of TextPart"),
        ((says("x", name=3), 0.0, False, False, {}), "message 0: name must be a string, not 3"),
        ((says("x", tool_calls=[1]), 0.0, False, False, {}), "message 0: tool_calls must be a tuple of ToolCall"),
        ((calls({"a": math.nan}), 0.0, False, False, {}), r"tool_calls\[0\]\.arguments\.a is nan, not a finite number"),
        ((calls({"a": {1}}), 0.0, False, False, {}), r"tool_calls\[0\]\.arguments\.a is a set, which JSON does not have"),
        ((calls({"a": SHY}), 0.0, False, False, {}), r"tool_calls\[0\]\.arguments\.a is a Shy, which JSON does not have"),
        ((calls(SHY), 0.0, False, False, {}), "must have a string as id and name, and a dict of arguments"),
    ],
)
def test_a_step_that_breaks_the_contract_is_a_failure_naming_the_environment(result: Any, detail: str) -> None:
    with pytest.raises(EpisodeFailure, match=detail) as caught:
        read_step(result, "test/Echo-v0")
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.ENV_ERROR, "test/Echo-v0")


@pytest.mark.parametrize(("result", "detail"), [(ASK, "reset must return"), (((), {}), "no message"), ((ASK, 3), "info must be a dict")])
def test_a_reset_that_breaks_the_contract_is_a_failure_naming_the_environment(result: Any, detail: str) -> None:
    with pytest.raises(EpisodeFailure, match=detail) as caught:
        read_reset(result, "test/Echo-v0")
    assert caught.value.failure.culprit == "test/Echo-v0"


class Untrue(dict[str, Any]):
    """A mapping that fails where it is read."""

    def get(self, *_: Any) -> Any:
        raise SystemExit("not today")


def test_code_of_the_environment_that_runs_while_its_answer_is_read_is_its_failure() -> None:
    with pytest.raises(EpisodeFailure, match="SystemExit: not today") as caught:
        step_env(Echo((ASK, 0.0, False, False, Untrue(a=1))), "test/Echo-v0", "hi")
    assert caught.value.failure.kind is FailureKind.ENV_ERROR


def test_what_an_episode_keeps_of_an_answer_no_later_step_changes() -> None:
    seen = [1]
    info = StepInfo.read({"data": {"seen": seen, "at": np.int64(3)}})
    seen.append(2)
    assert info.data == {"seen": [1], "at": 3}


def test_an_exception_inside_an_environment_is_its_failure() -> None:
    with pytest.raises(EpisodeFailure, match="RuntimeError: lost the database") as caught:
        step_env(Echo(error="lost the database"), "test/Echo-v0", "hi")
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.ENV_ERROR, "test/Echo-v0")
