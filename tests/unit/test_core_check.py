"""`burnish check` finds out what it is given; the suite for tools finds what is wrong."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.envs.checks.conformance import Report, render
from burnish.envs.checks.schema_samples import sample
from burnish.envs.checks.tools import check_tools
from burnish.envs.tools import Tool, ToolContext, ToolRejected, ToolSet, tool
from burnish.hosting.services import load_tools

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


ROBOT = """
from burnish import ToolContext, tool

class Robot:
    def __init__(self, context: ToolContext) -> None:
        self.left = dict(context.data["shelf"])

    @tool
    def look(self, item: str) -> str:
        \"\"\"Count.\"\"\"
        return str(self.left.get(item, 0))
"""
JUDGES = """
from burnish import RewardInput, reward, verifier
from stock import Robot

@reward("DOCK/brief-v1")
def brief(episode: RewardInput) -> float:
    return -float(len(episode.answer or ""))

@verifier("DOCK/loaded-v1")
def loaded(episode: RewardInput) -> float:
    return float(len(episode.answer or ""))
"""


@pytest.fixture
def dock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The namespace of a plug-in that imports what lies beside it, a class of tools; one starts in their folder."""
    namespace = f"dock{next(_counter)}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    (tmp_path / "stock.py").write_text(ROBOT)
    (tmp_path / "judges.py").write_text(JUDGES.replace("DOCK", namespace))
    yield namespace
    sys.modules.pop("stock", None)


def checked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments])


def test_a_class_of_tools_is_checked_alone_and_with_its_file(dock: str) -> None:
    for target in ("stock.py", "stock.py:Robot"):
        bare = checked(target)
        assert bare.exit_code == 0, "its objects are made from a task that nobody gave, which is no fault"
        assert "tools of stock.py:Robot: needs a sample" in bare.stdout and "--arg 'data={…}'" in bare.stdout
        whole = checked(target, "--arg", "data={shelf = {bolts = 3}}")
        assert whole.exit_code == 0 and "tools of stock.py:Robot: passed" in whole.stdout, whole.output


def test_what_a_service_takes_by_its_name_in_a_file_is_checked_by_it(dock: str) -> None:
    assert f"{dock}/brief-v1: passed" in checked("judges.py:brief").stdout
    assert f"{dock}/loaded-v1: passed" in checked("judges.py:loaded").stdout
    assert "there is no 'lodad'; did you mean 'loaded'?" in checked("judges.py:lodad").stderr


PRICED = """
import gymnasium
from pydantic import BaseModel, Field
from burnish import Message, RewardInput, reward, tool
from burnish.envs import register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText

@register_env("DOCK/Asking-v0")
class Asking(gymnasium.Env):
    observation_space, action_space = MessagesSpace(), UnicodeText()
    def __init__(self, highest: int = 100):
        self.highest = highest
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.over, price = False, int(self.np_random.integers(self.highest))
        return (Message("user", f"What do {price} bolts cost?"),), {"data": {"price": price}}
    def step(self, action):
        if self.over:
            raise gymnasium.error.ResetNeeded("it is over")
        self.over = True
        return (), 0.0, True, False, {}

class Limits(BaseModel):
    limit: int = Field(200, alias="most")

@reward("DOCK/short-v1")
def short(episode: RewardInput, *, options: Limits) -> float:
    return float(episode.data["price"] < options.limit)

@reward("DOCK/near-v1")
def near(episode: RewardInput, *, target: int) -> float:
    return -float(abs(episode.data["price"] - target))

@tool
def count(item: str) -> str:
    "Count."
    return "3"
"""


def states(done: Result) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.endswith((": passed", ": failed", ": needs a sample"))]


def test_each_subject_of_a_file_gets_the_arguments_that_it_takes(dock: str) -> None:
    Path("priced.py").write_text(PRICED.replace("DOCK", dock))
    done = checked("priced.py", "--arg", "highest=50", "--arg", "most=30", "--arg", "target=20", "--arg", "data={}")
    passed = [f"{dock}/Asking-v0", f"{dock}/near-v1", f"{dock}/short-v1", "tools of priced.py"]
    assert done.exit_code == 0 and states(done) == [f"{one}: passed" for one in passed], done.output
    alone = checked("priced.py:near", "--arg", "target=20")
    assert alone.exit_code == 0 and states(alone) == [f"{dock}/near-v1: passed"], "the environment is played without what the reward takes"


GUARDED = """
from pydantic import BaseModel, model_validator
from burnish import RewardInput, reward

class Band(BaseModel):
    low: float = 0.0
    top: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def in_order(cls, said):
        if said["low"] > said["top"]:
            raise ValueError("is above its top")
        return said

@reward("DOCK/banded-v1")
def banded(episode: RewardInput, *, options: Band) -> float:
    return min(options.top, max(options.low, float(len(episode.messages))))

@reward("DOCK/capped-v1")
def capped(episode: RewardInput, *, high: float) -> float:
    return min(high, float(len(episode.messages)))
"""


def test_a_validator_of_options_says_nothing_of_those_that_another_subject_takes(dock: str) -> None:
    Path("guarded.py").write_text(GUARDED.replace("DOCK", dock))
    done = checked("guarded.py", "--arg", "low=0.25", "--arg", "top=4.0", "--arg", "high=9.0")
    assert done.exit_code == 0 and states(done) == [f"{dock}/banded-v1: passed", f"{dock}/capped-v1: passed"], done.output


def test_an_argument_that_nothing_takes_is_refused(dock: str) -> None:
    Path("priced.py").write_text(PRICED.replace("DOCK", dock))
    done = checked("priced.py", "--arg", "target=20", "--arg", "limit=30")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: --arg limit: nothing in priced.py takes it; known are highest, target, most, data\n",
    )
    assert "nothing in priced.py takes it; did you mean 'highest'?" in checked("priced.py", "--arg", "higest=3").stderr
    for target in ("stock.py", "stock.py:Robot"):
        assert f"--arg dat: nothing in {target} takes it; did you mean 'data'?" in checked(target, "--arg", "dat={}").stderr


def test_tools_in_a_class_are_said_to_be_there_where_functions_are_looked_for(dock: str) -> None:
    with pytest.raises(ValueError, match=r"'stock\.py' has no functions that are tools, but a class of them; give stock\.py:Robot"):
        load_tools("stock.py")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rewards", "check", "DOCK/loaded-v1"], "'DOCK/loaded-v1' is the id of a verifier, and a reward is asked for"),
        (["env", "check", "DOCK/brief-v1"], "'DOCK/brief-v1' is the id of a reward, and an environment is asked for"),
        (["rewards", "show", "judges.py:DOCK/brief-v1"], "give its id, DOCK/brief-v1, and the file by --plugin judges.py"),
    ],
)
def test_an_id_of_another_kind_and_a_name_in_a_file_are_told_from_unknown_ids(dock: str, arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, [*(one.replace("DOCK", dock) for one in arguments), "--plugin", "judges.py"])
    assert result.exit_code == 2 and says.replace("DOCK", dock) in result.stderr


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
