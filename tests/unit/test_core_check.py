"""`burnish check` finds out what it is given; the suite for tools finds what is wrong."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.checks.conformance import Report, render
from burnish.envs.checks.schema_samples import sample
from burnish.envs.checks.tools import check_tools
from burnish.envs.tools import Tool, ToolContext, ToolSet, tool

pytestmark = pytest.mark.unit


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
        ("burnish.envs.builtin.inspection.service", ["--sample", "answers.jsonl", "--reply", "hello"], "--sample and --reply"),
    ],
)
def test_an_option_without_effect_is_refused(target: str, options: list[str], idle: str) -> None:
    done = CliRunner().invoke(app, ["check", target, *options])
    assert (done.exit_code, done.stderr) == (2, f"error: {idle} has no effect on the checks of {target}\n")
