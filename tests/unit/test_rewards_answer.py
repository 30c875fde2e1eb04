"""A policy that was cut short before it answered is paid for no answer, whoever judges it and whatever the tool said last."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from burnish.cli.scaffold import new_component
from burnish.envs.builtin.inspection.parts import make_part
from burnish.envs.contract import ENVS, register_env
from burnish.envs.registry import load_plugin
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tools import ToolSet, tool
from burnish.envs.types import Episode, Message, Task, ToolCall
from burnish.rewards.builtin.inspection import verdict
from burnish.rewards.plugin import REWARDS, make_scorer, reward
from burnish.rewards.remote.service import VERIFIERS
from burnish.rewards.remote.wire import from_request, to_request
from burnish.rewards.rubric import Rubric
from burnish.rewards.types import RewardInput, Score
from burnish.rollout.config import RolloutConfig
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.episode import run_episode
from burnish.rollout.renderers import TemplateRenderer
from burnish.trainer.models.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
ENV_ID, REWARD = "tests/Sum-v0", "tests/says-seven-v1"
ASKED = Message("user", "What is 3 + 4?")
CALLED = (ASKED, Message("assistant", "add(3, 4)"), Message("tool", "7", tool_call_id="call_0", name="add"))
ANSWERED = (*CALLED, Message("assistant", "7"))


def episode(messages: tuple[Message, ...], **data: Any) -> RewardInput:
    return RewardInput("t/0", Task("t", 0), messages, 0.0, {}, {"tool_calls": 1.0, "turns": 1.0}, data, "max_turns")


@tool
def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: one.
        b: the other.
    """
    return str(a + b)


class Sum(gymnasium.Env[Any, str]):
    """Asks 3 + 4 and takes any text for the answer."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return (ASKED,), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (), 0.0, True, False, {}


def says_seven(given: RewardInput) -> float:
    return float(given.answer == "7")


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    if ENVS.loaded(ENV_ID) is None:
        register_env(ENV_ID, lambda: ToolEnv(Sum(), ToolSet([add])))
    if REWARDS.loaded(REWARD) is None:
        reward(REWARD)(says_seven)


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.mark.parametrize(("said", "worth", "answer"), [(("add(3, 4)",), 0.0, None), (("add(3, 4)", "7"), 1.0, "7")])
def test_a_policy_that_only_calls_the_tool_is_not_paid_for_what_the_tool_says(
    threads: ThreadPoolExecutor, said: tuple[str, ...], worth: float, answer: str | None
) -> None:
    tokenizer = train_tokenizer(["What is 3 + 4? add(3, 4) 7"] * 20, vocab_size=300, max_length=512)
    renderer = TemplateRenderer(tokenizer)
    engine = ScriptedEngine([[*tokenizer.encode(text), renderer.stop_token_ids[0]] for text in said])
    limits = RolloutConfig(max_turns=2, max_tokens_per_turn=32, describe_tools=False)
    parts = EpisodeParts(ENV_ID, {}, engine, renderer, Rubric([(make_scorer(REWARD), 1.0)], 0.0), limits, threads, seed=1)
    done: Episode = asyncio.run(run_episode(parts, Task("t", 0), 0, 1.0))
    assert done.reward is not None and done.reward.total == worth
    last = done.messages[-1]
    assert last.text == "7", "the tool's answer, or the policy's"
    assert episode(done.messages).answer == answer


def test_the_answer_is_the_policys_last_words_or_none() -> None:
    assert episode(ANSWERED).answer == "7"
    assert episode(CALLED).answer is None
    assert episode((ASKED,)).answer is None and episode(()).answer is None
    assert episode((ASKED, Message("assistant", "", (ToolCall("0", "add"),)))).answer is None, "a call is no answer"
    assert episode((ASKED, Message("assistant", ""))).answer == "", "silence is one"


class Leads(Sum):
    """Opens with a sum that is solved already."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return (Message("user", "What is 3 + 4?"), Message("assistant", "7")), {}


class Silent(Sum):
    """Adds nothing to what the task's prompt asks."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return (), {}


@pytest.mark.parametrize(("task", "env"), [(Task("t", 0), Leads), (Task("t", 0, (ASKED, Message("assistant", "7"))), Silent)])
def test_what_the_prompt_says_for_the_assistant_is_no_answer(threads: ThreadPoolExecutor, task: Task, env: type[Sum]) -> None:
    """The policy's time runs out in its first turn; what the verifier gets over the wire says the same."""
    id = f"tests/{env.__name__}-v1"
    if ENVS.loaded(id) is None:
        register_env(id, env)
    renderer = TemplateRenderer(train_tokenizer(["What is 3 + 4? 7"] * 20, vocab_size=300, max_length=512))
    engine = ScriptedEngine([[1] * 400])
    engine.token_s = 0.01
    limits = RolloutConfig(max_turns=2, max_tokens_per_turn=400, episode_timeout_s=0.5)
    rubric = Rubric([(make_scorer(REWARD), 1.0)], 0.0)
    done: Episode = asyncio.run(run_episode(EpisodeParts(id, {}, engine, renderer, rubric, limits, threads, seed=1), task, 0, 1.0))
    assert done.truncation == "time" and not done.turns and Message("assistant", "7") in done.messages
    assert done.reward is not None and done.reward.total == 0.0
    given = RewardInput("t/0", task, done.messages, 0.0, metrics={"turns": 0.0})
    assert given.answer is None and not to_request(given).HasField("answer") and from_request(to_request(given)).answer is None
    spoken = replace(given, messages=(*done.messages, Message("assistant", "8")), metrics={"turns": 1.0})
    assert spoken.answer == from_request(to_request(spoken)).answer == "8"


def test_the_prompt_of_a_task_is_no_answer_where_nobody_counts_turns() -> None:
    said = (ASKED, Message("assistant", "7"))
    assert RewardInput("t/0", Task("t", 0, said), said, 0.0).answer is None
    assert RewardInput("t/0", Task("t", 0, said[:1]), said, 0.0).answer == RewardInput("t/0", Task("t", 0), said, 0.0).answer == "7"


def test_the_answer_crosses_the_wire_for_verifiers_in_any_language() -> None:
    assert to_request(episode(ANSWERED)).answer == "7"
    assert not to_request(episode(CALLED)).HasField("answer")
    assert from_request(to_request(episode(ANSWERED))).answer == "7"
    assert to_request(episode((ASKED, Message("assistant", "\ud800")))).answer == "?", "as the messages are sent"


def judged(judge: Any, messages: tuple[Message, ...], **data: Any) -> float:
    result = judge(episode(messages, **data))
    return result.value if isinstance(result, Score) else float(result)


def test_what_the_readme_the_examples_and_the_built_in_verifiers_judge_is_the_answer() -> None:
    load_plugin(ROOT / "examples" / "first" / "orders.py")
    shipped = VERIFIERS.get("first/shipped-v1").function
    yes = (ASKED, Message("assistant", 'count(item="bolts")'), Message("tool", "yes"))
    assert judged(shipped, yes, answer="yes") == 0.0 and judged(shipped, (*yes, Message("assistant", "Yes.")), answer="yes") == 1.0
    load_plugin(ROOT / "examples" / "verifier" / "short_answer.py")
    short = VERIFIERS.get("my-team/short-answer-v1").function
    assert judged(short, CALLED, answer=7) == 0.0 and judged(short, ANSWERED, answer=7) == 1.0
    truth = make_part(0, 0).verdict
    said = (ASKED, Message("tool", f"verdict: {truth}; reason: within"))
    assert judged(verdict.function, said, level=0) == 0.0
    assert judged(verdict.function, (*said, Message("assistant", f"verdict: {truth}; reason: within")), level=0) >= 0.5


def test_the_lambda_of_the_examples_judges_the_answer() -> None:
    handler = make_scorer("burnish/reward-lambda-v1", params={"handler": f"{ROOT}/examples/formats/handler.py:lambda_handler"})
    said = Message("tool", '{"ship": true, "reason": "x"}')
    data = {"reference_answer": {"ship": True}}
    assert asyncio.run(handler.score(episode((ASKED, Message("assistant", "look()"), said), **data))).value == 0.0
    assert asyncio.run(handler.score(episode((ASKED, Message("assistant", said.text)), **data))).value == 1.0


@pytest.mark.parametrize(("kind", "name"), [("reward", "score"), ("verifier", "judge")])
def test_the_packages_to_start_from_judge_the_answer(tmp_path: Path, kind: Any, name: str) -> None:
    new_component(kind, "my-sums", tmp_path / kind)
    (file,) = (tmp_path / kind).rglob(f"src/*/{kind}.py")
    source = re.sub(r"@(reward|verifier)\(.*\)\n", "", file.read_text())  # the function by itself
    space: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), space)
    assert judged(space[name], CALLED, answer=7) == 0.0 and judged(space[name], ANSWERED, answer=7) == 1.0


@pytest.mark.parametrize("operation", ["eq", "ne", "like", "ilike"])
def test_a_grader_gives_its_least_where_there_is_no_answer(operation: str) -> None:
    grader = {
        "type": "string_check",
        "name": "n",
        "operation": operation,
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
    }
    scorer = make_scorer("burnish/openai-grader-v1", params={"grader": grader})
    for said in (CALLED, (ASKED, Message("assistant", "")), (ASKED, Message("assistant", " \n"))):
        for wanted in ("7", ""):
            unanswered = asyncio.run(scorer.score(episode(said, answer=wanted)))
            assert (unanswered.value, unanswered.parts) == (0.0, {"unreadable": 1.0})
    assert asyncio.run(scorer.score(episode(ANSWERED, answer="7"))).value == float(operation != "ne")
