"""Every option of the command line stands in the README or on a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.command_tree import commands

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
NAMED = set(re.findall(r"--[a-z][a-z-]*", TEXT))


def test_every_option_is_named() -> None:
    options = {
        f"{name} {parameter.opts[0]}": {*parameter.opts, *parameter.secondary_opts}
        for name, command in commands().items()
        for parameter in command.params
        if parameter.param_type_name == "option"
    }
    assert len(options) > 200
    assert [option for option, names in options.items() if not names & NAMED] == []


def test_every_exit_code_that_a_help_tells_of_is_in_the_list() -> None:
    said = {f"burnish {name}" for name, command in commands().items() if "exits with 1" in " ".join((command.help or "").lower().split())}
    listed = re.findall(r"^\| `(burnish [^`]+)` \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    assert len(said) > 8 and sorted(listed) == sorted(said)
