"""`burnish check` on files and services, and what the suite for verifiers finds, over real sockets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.checks.conformance import Report, render
from burnish.envs.checks.environment import check_environment
from burnish.envs.checks.tool_service import check_tool_service
from burnish.envs.contract import ENVS
from burnish.envs.registry import load_plugin
from burnish.hosting.process import ServiceProcess
from burnish.rewards.checks.verifier import check_verifier, check_verifier_service
from burnish.rewards.remote.service import Verifier
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.integration

PLUGIN = """
from burnish import RewardInput, ToolContext, tool, verifier
@tool
def double(x: int) -> str:
    '''Twice a number.'''
    return str(2 * x)
@verifier("check-test/length-v1")
def length(episode: RewardInput) -> float:
    return min(1.0, len(episode.answer or "") / 10)
"""

MOODY = """
import os
from burnish import Message
from burnish.envs import register_env
from burnish.envs.builtin.arithmetic import Arithmetic
@register_env("check-test/Moody-v0")
class Moody(Arithmetic):
    def reset(self, *, seed=None, options=None):
        (asked,), info = super().reset(seed=seed)
        return (Message("user", f"{asked.text} Here in {os.getpid()}."),), info
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


SHELF = """
from burnish import ToolContext, tool

class Shelf:
    def __init__(self, context: ToolContext) -> None:
        self.left = dict(context.data["shelf"])

    @tool
    def look(self, item: str) -> str:
        \"\"\"Count.\"\"\"
        return str(self.left.get(item, 0))
"""


def test_a_service_whose_tools_are_made_from_a_task_needs_one_and_has_no_fault(tmp_path: Path) -> None:
    """The example of docs/run-tools.md: without the data of a task no object can be made, which says nothing of the contract."""
    (tmp_path / "shelf.py").write_text(SHELF)
    with ServiceProcess("tools", f"{tmp_path / 'shelf.py'}:Shelf", tmp_path / "log") as tools:
        bare = check_tool_service(tools.address)
        whole = check_tool_service(tools.address, {"shelf": {"bolts": 3}})
    assert not bare.failed, render(bare)
    needed = {check.name for check in bare.checks if check.status == "need"}
    assert needed == {"sessions", "garbage", "unknown names", "calls"}, render(bare)
    assert whole.passed, render(whole)


# These need a package, a service, and a task with a prompt.
ELSEWHERE = ("burnish/ReasoningGym-v0", "burnish/Remote-v0", "burnish/SingleTurn-v0")
REPLIES = ('spec("bore")', "hit", "left", "down", "right", "pick up", "scrap bore", "north", "verdict: scrap; reason: undersize")


def test_every_built_in_environment_plays_the_same_in_another_process() -> None:
    ids = [row.id for row in ENVS.list() if row.id.startswith("burnish/") and row.id not in ELSEWHERE]
    assert len(ids) > 5
    for id in ids:
        report = check_environment(id, seeds=(0, 1), replies=REPLIES)
        assert status(report, "another process")[0] == "pass", render(report)


def test_what_depends_on_the_process_is_found(tmp_path: Path) -> None:
    file = tmp_path / "moody.py"
    file.write_text(MOODY)
    load_plugin(file)
    report = check_environment("check-test/Moody-v0")
    assert [check.name for check in report.checks if check.status == "fail"] == ["another process"], render(report)
    assert "in another process: reset differs" in status(report, "another process")[1]
    assert check_environment("check-test/Moody-v0", other_process=False).passed


def _choosy(episode: RewardInput) -> float:
    return float(len((episode.answer or "").split()[0]))


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
