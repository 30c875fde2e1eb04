"""ToolEnv: calls are run and answered, answers reach the wrapped environment, and nothing the policy writes raises."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import gymnasium
import pytest
from gymnasium.error import ResetNeeded

from burnish.envs.contract import Observation, step_env
from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tool_sessions import SessionTools
from burnish.envs.tools import ToolContext, ToolRejected, ToolSet, tool
from burnish.envs.types import Message, Task, ToolCall

pytestmark = pytest.mark.unit

SEEN: list[ToolContext] = []


@tool
def measure(part: int, feature: str, *, context: ToolContext) -> str:
    """Measure a feature."""
    SEEN.append(context)
    if feature not in ("bore", "pin"):
        raise ToolRejected(f"part {part} has no {feature}")
    return f"{feature} of {part}: 3 over"


@tool
def broken() -> str:
    """Fail."""
    raise RuntimeError("the gauge fell off")


class Verdicts(gymnasium.Env[Observation, str]):
    """Takes "scrap" as the right verdict."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed_used = seed
        self.heard: list[tuple[str, str]] = []
        return (Message("user", "Inspect."),), {"data": {"truth": "scrap"}, "metrics": {"cost": 0.0}}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        right = float(action == "scrap")
        return (), right, True, False, {"reward_parts": {"verdict": right}, "data": {"verdict": action}}

    def tool_context(self) -> dict[str, Any]:
        return {"level": 2}

    def on_tool_result(self, call: ToolCall, text: str) -> Mapping[str, Any]:
        self.heard.append((call.name, text))
        return {"metrics": {"cost": float(len(self.heard))}}


def made(**kwargs: Any) -> ToolEnv:
    return ToolEnv(Verdicts(), ToolSet([measure, broken]), **kwargs)


def test_an_episode_with_a_call_and_a_verdict() -> None:
    env = made()
    messages, info = env.reset(seed=7)
    assert messages == (Message("user", "Inspect."),)
    assert [schema["function"]["name"] for schema in info["tools"]] == ["measure", "broken"]
    assert info["data"] == {"truth": "scrap", "tool_calls": [], "tool_parser": "burnish/pythonic-v1"}
    assert info["metrics"] == {"tool_calls": 0.0, "tool_rejected": 0.0, "malformed_calls": 0.0, "cost": 0.0}

    messages, reward, terminated, truncated, info = env.step('[measure(17, "bore"), measure(17, "pin")]')
    assert messages == (
        Message("tool", "bore of 17: 3 over", tool_call_id="call_0", name="measure"),
        Message("tool", "pin of 17: 3 over", tool_call_id="call_1", name="measure"),
    )
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["metrics"] == {"tool_calls": 2.0, "tool_rejected": 0.0, "malformed_calls": 0.0, "cost": 2.0}

    messages, reward, terminated, truncated, info = env.step("scrap")
    assert (messages, reward, terminated, truncated) == ((), 1.0, True, False)
    assert info["reward_parts"] == {"verdict": 1.0}
    assert info["data"] == {
        "verdict": "scrap",
        "tool_calls": [
            {"name": "measure", "arguments": {"part": 17, "feature": "bore"}, "status": "ok"},
            {"name": "measure", "arguments": {"part": 17, "feature": "pin"}, "status": "ok"},
        ],
        "call_lines": {"call_0": [0, 41]},
    }
    with pytest.raises(ResetNeeded):
        env.step('measure(17, "bore")')


def test_it_records_which_lines_of_a_turn_hold_its_calls() -> None:
    env = made()
    env.reset(seed=1)
    turns = 'Let me see.\nmeasure(1, "bore"); measure(1, "lid")\nmeasure(2, "bore")\nThat is all.', "measure(1,", 'measure(3, "pin")'
    *_, info = [env.step(text)[-1] for text in turns]
    assert len(info["data"]["tool_calls"]) == 4
    assert info["data"]["call_lines"] == {"call_0": [12, 69], "call_3": [0, 17]}


def test_a_refused_call_is_an_observation_and_costs_nothing() -> None:
    env = made()
    env.reset(seed=1)
    messages, reward, *_, info = env.step('measure(17, "lid")')
    assert messages == (Message("tool", "Error: part 17 has no lid", tool_call_id="call_0", name="measure"),)
    assert (reward, info["metrics"]) == (0.0, {"tool_calls": 1.0, "tool_rejected": 1.0, "malformed_calls": 0.0})
    assert info["data"]["tool_calls"][0]["status"] == "rejected"
    messages, *_ = env.step('measure("seventeen", "bore")')
    assert "argument 'part'" in messages[0].text


def test_malformed_text_is_an_observation_that_says_what_is_wrong() -> None:
    env = made()
    env.reset(seed=1)
    messages, reward, terminated, _, info = env.step("measure(17, bore)")
    assert messages == (Message("tool", "Error: bore is not a value; put text in quotes."),)
    assert (reward, terminated, info["metrics"]["malformed_calls"], info["metrics"]["tool_calls"]) == (0.0, False, 1.0, 0.0)


def test_calls_beyond_the_limit_are_not_run() -> None:
    env = made(max_calls=1)
    env.reset(seed=1)
    SEEN.clear()
    messages, *_, info = env.step('[measure(17, "bore"), measure(17, "bore")]')
    assert [message.text for message in messages] == ["bore of 17: 3 over", "Error: all 1 tool calls are used; give your final answer."]
    assert len(SEEN) == 1
    assert [call["status"] for call in info["data"]["tool_calls"]] == ["ok", "over_limit"]
    assert info["metrics"] == {"tool_calls": 1.0, "tool_rejected": 1.0, "malformed_calls": 0.0, "cost": 1.0}


def test_a_failing_tool_is_a_failure_naming_the_tool() -> None:
    env = made()
    env.reset(seed=1)
    with pytest.raises(EpisodeFailure) as caught:
        step_env(env, "test/Verdicts-v0", "broken()")
    assert caught.value.failure.kind is FailureKind.TOOL_ERROR
    assert caught.value.failure.culprit == "tool broken"
    assert "the gauge fell off" in caught.value.failure.detail


def test_tools_that_do_not_keep_their_interface_fail_as_tools() -> None:
    class Numbers:
        def schemas(self) -> list[dict[str, Any]]:
            return [measure.schema()]

        def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> Any:
            if arguments["part"] == 0:
                raise KeyError("part")
            return 3

    env = ToolEnv(Verdicts(), Numbers())
    env.reset(seed=1)
    for part, detail in ((1, "returned int instead of str"), (0, "KeyError")):
        with pytest.raises(EpisodeFailure, match=detail) as caught:
            env.step(f'measure({part}, "bore")')
        assert caught.value.failure.kind is FailureKind.TOOL_ERROR


def test_context_carries_episode_seed_and_data() -> None:
    env = made()
    SEEN.clear()
    env.reset(seed=5, options={"task": Task("t", 5, data={"line": "A", "level": 1}), "episode_id": "t/3"})
    env.step('measure(17, "bore")')
    assert SEEN[-1] == ToolContext("t/3", 5, {"line": "A", "level": 2})


def test_a_reset_without_a_seed_draws_one_that_environment_and_tools_share() -> None:
    first, second = made(), made()
    for env in (first, second):
        env.reset(seed=5)
        env.reset()
        SEEN.clear()
        env.step('measure(17, "bore")')
        assert SEEN[-1].seed == env.unwrapped.seed_used  # type: ignore[attr-defined]
    assert first.unwrapped.seed_used == second.unwrapped.seed_used != 5  # type: ignore[attr-defined]


def test_hermes_parser_by_name() -> None:
    env = made(parser="hermes")
    env.reset(seed=1)
    messages, *_ = env.step('<tool_call>{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}</tool_call>')
    assert messages[0].text == "bore of 17: 3 over"
    with pytest.raises(ValueError, match="tool-call parser 'burnish/xml-v1' is unknown"):
        made(parser="xml")


def test_infos_of_earlier_steps_are_not_changed_by_later_ones() -> None:
    env = made()
    env.reset(seed=1)
    *_, early = env.step('measure(17, "bore")')
    env.step('measure(17, "pin")')
    assert len(early["data"]["tool_calls"]) == 1
    assert early["metrics"]["tool_calls"] == 1.0


def test_calls_of_one_turn_run_side_by_side_and_are_answered_in_their_order() -> None:
    both = threading.Barrier(2)

    @tool
    def meet(name: str) -> str:
        """Wait for the other call."""
        both.wait(60)
        return f"met as {name}"

    env = ToolEnv(Verdicts(), ToolSet([meet]))
    env.reset(seed=1)
    messages, *_, info = env.step('meet("a")\nmeet("b")')  # one after the other, the first would wait for ever
    assert [message.text for message in messages] == ["met as a", "met as b"]
    assert [call["arguments"]["name"] for call in info["data"]["tool_calls"]] == ["a", "b"]
    assert [text for _, text in env.unwrapped.heard] == ["met as a", "met as b"]  # type: ignore[attr-defined]


def test_a_failing_call_fails_the_turn_without_waiting_for_the_others() -> None:
    release = threading.Event()

    @tool
    def hang() -> str:
        """Wait for ever."""
        release.wait(60)
        return "late"

    env = ToolEnv(Verdicts(), ToolSet([hang, broken]))
    env.reset(seed=1)
    with pytest.raises(EpisodeFailure, match="the gauge fell off"):
        env.step("hang()\nbroken()")
    assert not release.is_set()
    release.set()


def test_the_parser_is_the_one_of_the_chat_template_unless_the_environment_has_its_own() -> None:
    hermes = '<tool_call>{"name": "measure", "arguments": {"part": 17, "feature": "bore"}}</tool_call>'
    env = made()
    _, info = env.reset(seed=1, options={"tool_parser": "burnish/hermes-v1"})
    assert info["data"]["tool_parser"] == "burnish/hermes-v1"
    assert env.step(hermes)[0][0].text == "bore of 17: 3 over"  # an answer without a call, for the pythonic parser
    _, info = made(parser="pythonic").reset(seed=1, options={"tool_parser": "burnish/hermes-v1"})
    assert info["data"]["tool_parser"] == "burnish/pythonic-v1"


def test_calls_on_an_object_of_the_episode_follow_each_other() -> None:
    class Shelf:
        def __init__(self, context: ToolContext) -> None:
            self.taken: list[int] = []

        @tool
        def take(self, item: int) -> str:
            """Take an item."""
            self.taken.append(item)
            return f"{self.taken}"

    env = ToolEnv(Verdicts(), SessionTools(Shelf))
    env.reset(seed=1)
    messages, *_ = env.step("take(1)\ntake(2)\ntake(3)")
    assert [message.text for message in messages] == ["[1]", "[1, 2]", "[1, 2, 3]"]
