"""`burnish check` finds out what it is given; the suites for tools and verifiers find what is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli import app
from burnish.envs.conformance import Report, render
from burnish.envs.schema_samples import sample
from burnish.envs.tool_service_check import check_tool_service
from burnish.envs.tools import Tool, ToolContext, ToolSet, tool
from burnish.envs.tools_check import check_tools
from burnish.rewards.types import RewardInput
from burnish.rewards.verifier_check import check_verifier, check_verifier_service
from burnish.rewards.verifier_service import Verifier
from burnish.services import ServiceProcess

pytestmark = pytest.mark.unit

PLUGIN = """
from burnish import RewardInput, ToolContext, tool, verifier
@tool
def double(x: int) -> str:
    '''Twice a number.'''
    return str(2 * x)
@verifier("check-test/length-v1")
def length(episode: RewardInput) -> float:
    return min(1.0, len(episode.messages[-1].text) / 10)
"""


def status(report: Report, name: str) -> tuple[str, str]:
    return next((check.status, check.detail) for check in report.checks if check.name == name)


def test_a_plugin_file_is_checked_as_a_whole_and_a_service_by_its_address(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    assert "check-test/length-v1: passed" in result.output and f"tools of {file}: passed" in result.output
    with (
        ServiceProcess("tools", str(file), tmp_path / "log") as tools,
        ServiceProcess("verifier", f"{file}:length", tmp_path / "log2") as judge,
    ):
        for address in (tools.address, judge.address):
            result = CliRunner().invoke(app, ["check", address])
            assert result.exit_code == 0, result.output
            assert f"at {address}: passed" in result.output
        with pytest.raises(ValueError, match="does not answer"):
            check_tool_service(judge.address)
        with pytest.raises(ValueError, match="has no verifier 'x/y-v1'"):
            check_verifier_service(judge.address, "x/y-v1")


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


def _choosy(episode: RewardInput) -> float:
    return float(len(episode.messages[-1].text.split()[0]))


_moody = itertools.count()


@pytest.mark.parametrize(
    ("function", "check", "detail"),
    [
        (_choosy, "policy text", "what the policy writes must be judged"),
        (lambda episode: float(next(_moody)), "determinism", "a verdict must not vary"),
        (lambda episode: float("nan"), "scores", "finite number"),
    ],
)
def test_each_fault_of_a_verifier_is_found(function: Any, check: str, detail: str) -> None:
    report = check_verifier(Verifier("check-test/faulty-v1", function))
    found = status(report, check)
    assert found[0] == "fail" and detail in found[1], render(report)


def test_samples_fit_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 3}, "w": {"enum": ["a"]}},
        "required": ["n"],
    }
    assert sample(schema, 0, complete=True) == {"n": 3, "w": "a"}
