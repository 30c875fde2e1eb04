"""`burnish check` finds out what it is given; the suite for tools finds what is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.checks.conformance import Report, render
from burnish.envs.checks.schema_samples import sample
from burnish.envs.checks.tools import check_tools
from burnish.envs.tools import Tool, ToolContext, ToolRejected, ToolSet, tool

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def status(report: Report, name: str) -> tuple[str, str]:
    return next((check.status, check.detail) for check in report.checks if check.name == name)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("burnish/Taxy-v0", "did you mean 'burnish/Taxi-v0'?"),
        ("bad name", "is no id (namespace/name-v1), no plug-in (file.py), no module and no address"),
        ("burnish.envs.types", "registers no environment, reward or verifier, and has no tools"),
        ("missing.py", "is not a file"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_line(target: str, sentence: str) -> None:
    result = CliRunner().invoke(app, ["check", target])
    assert result.exit_code == 2
    assert sentence in result.stderr and result.stderr.count("\n") == 1


@tool
def fragile(x: str) -> str:
    """Believes in numbers."""
    return str(int(x))


_counter = itertools.count()


@tool
def counting(x: int) -> str:
    """Counts over all episodes."""
    return str(next(_counter))


@tool
def greedy(x: int, *, context: ToolContext) -> str:
    """Changes the task."""
    context.data["taken"] = True  # type: ignore[index]
    return "ok"


@pytest.mark.parametrize(
    ("one", "check", "detail"),
    [(fragile, "calls", "ValueError"), (counting, "determinism", "one call, two answers"), (greedy, "input untouched", "changes the data")],
)
def test_each_fault_of_a_tool_is_found(one: Tool[..., Any], check: str, detail: str) -> None:
    report = check_tools(ToolSet([one]))
    found = status(report, check)
    assert found[0] == "fail" and detail in found[1], render(report)


def test_samples_fit_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 3}, "w": {"enum": ["a"]}},
        "required": ["n"],
    }
    assert sample(schema, 0, complete=True) == {"n": 3, "w": "a"}


@pytest.mark.parametrize(
    ("target", "options", "idle"),
    [
        ("burnish/inspection-verdict-v1", ["--reply", "hello"], "--reply"),
        ("burnish/Arithmetic-v0", ["--sample", "answers.jsonl"], "--sample"),
        ("burnish.envs.builtin.inspection.service", ["--sample", "answers.jsonl"], "--sample"),
    ],
)
def test_an_option_without_effect_is_refused(target: str, options: list[str], idle: str) -> None:
    done = CliRunner().invoke(app, ["check", target, *options])
    assert (done.exit_code, done.stderr) == (2, f"error: {idle} has no effect on the checks of {target}\n")


PLUGIN = """
import gymnasium
from burnish import Message, RewardInput, ToolContext, ToolRejected, reward, tool, verifier
{environment}

@tool
def count(item: str, *, context: ToolContext) -> str:
    "Count what is left of an item."
    if item not in context.data["shelf"]:
        raise ToolRejected("there is no shelf for it")
    return str(context.data["shelf"][item])

@reward("check-test/{name}-v1")
def priced(episode: RewardInput) -> float:
    return float(episode.data["price"])

@verifier("check-test/{name}-verdict-v1")
def priced_verdict(episode: RewardInput) -> float:
    return float(episode.data["price"])
"""
ENVIRONMENT = """
from burnish.envs import register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tools import ToolSet

class Shelf(gymnasium.Env):
    observation_space, action_space = MessagesSpace(), UnicodeText()
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        price = int(self.np_random.integers(100))
        return (Message("user", f"What do {price} bolts cost?"),), {"data": {"price": price}}
    def step(self, action):
        return (), 0.0, True, False, {}
    def tool_context(self):
        return {"shelf": {"part 7": 3}}

@register_env("check-test/Shelf-v0")
def make():
    return ToolEnv(Shelf(), ToolSet([count]))
"""


def test_what_needs_data_that_nobody_gave_is_no_fault_and_no_pass(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(PLUGIN.format(environment="", name="bare"))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "bare.py")])
    assert done.exit_code == 0, done.output
    for line in ("check-test/bare-v1: needs a sample", "check-test/bare-verdict-v1: needs a sample", "bare.py: needs a sample"):
        assert line in done.stdout
    assert "KeyError: 'price'" in done.stdout and "give some that do: --sample FILE.jsonl" in done.stdout
    assert "KeyError: 'shelf'" in done.stdout and "give some: --arg 'data={…}'" in done.stdout
    given = ["--arg", "data={shelf = {bolts = 3}}", "--reply", "count(item='bolts')"]
    done = CliRunner().invoke(app, ["check", str(tmp_path / "bare.py"), *given])
    assert "bare.py: passed" in done.stdout, done.output


def test_an_environment_in_the_same_file_gives_what_rewards_verifiers_and_tools_need(tmp_path: Path) -> None:
    (tmp_path / "whole.py").write_text(PLUGIN.format(environment=ENVIRONMENT, name="whole"))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "whole.py")])
    assert done.exit_code == 0, done.output
    states = [line.rpartition(": ")[2] for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert states == ["passed"] * 4, done.stdout


def test_the_first_example_is_whole() -> None:
    """Its tool is called as its prompt shows; that its made-up episodes all earn the same is said, of the reward and of the verifier."""
    done = CliRunner().invoke(app, ["check", str(ROOT / "examples" / "first" / "orders.py")])
    assert done.exit_code == 0, done.output
    states = [line.rpartition(": ")[2] for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    assert states == ["passed"] * 4, done.stdout
    assert done.stdout.count("all the same, 0: a reward that never differs teaches nothing") == 2


def test_tools_of_which_no_call_is_answered_have_shown_nothing() -> None:
    @tool
    def choosy(item: str) -> str:
        """Knows one item."""
        if item != "M8":
            raise ToolRejected("there is none")
        return "3"

    report = check_tools(ToolSet([choosy]))
    assert (report.verdict, report.failed, report.passed) == ("needs a sample", False, False)
    assert status(report, "calls")[1].endswith(
        "give a call that means something: --reply 'choosy(item=…)', or the data of a task: --arg 'data={…}'"
    )
    assert check_tools(ToolSet([choosy]), calls=[("choosy", {"item": "M8"})]).passed
