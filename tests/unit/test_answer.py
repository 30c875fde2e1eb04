"""With `--json`, stdout has the answer and nothing else, whoever else prints while the command works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from tests.unit.command_tree import commands

from burnish.cli import answer as room
from burnish.cli.group import Commands
from burnish.cli.options import print_json
from burnish.envs.registry import load_plugin

pytestmark = pytest.mark.unit

LOUD = """
import atexit, ctypes, subprocess
from burnish import RewardInput, reward

print("as it loads")
subprocess.run(["echo", "a child"], check=True)
ctypes.CDLL(None).printf(b"a C library\\n")
atexit.register(print, "at exit")

@reward("answer/loud-v1")
def loud(episode: RewardInput) -> float:
    return 1.0
"""
COMMANDS = commands()
BURNISH = (sys.executable, "-c", "from burnish.cli.main import main; main()")


def of_json(command: Any) -> Any:
    return next((one for one in command.params if "--json" in one.opts), None)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if of_json(command)])
def test_a_plugin_that_prints_is_heard_on_stderr(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's own option, before a stand-in for its work."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text('print("as it loads")\n')

    def work(plugin: list[Path] | None = None, **given: bool) -> None:
        for file in plugin or ():
            load_plugin(Path(file))
        print_json({"answer": list(given.values())})

    command = copy(COMMANDS[name])
    takes = [one for one in command.params if one.name == "plugin"]
    command.params, command.callback = [of_json(command), *takes], work
    group = Commands(name="burnish", commands={"it": command})
    group.main(["it", "--json", *(["--plugin", str(plugin)] if takes else [])], standalone_mode=False)
    told = capsys.readouterr()
    assert (json.loads(told.out), told.err) == ({"answer": [True]}, "as it loads\n" if takes else "")
    print("and then it is as before")
    assert capsys.readouterr().out


def test_json_is_printed_in_no_other_way() -> None:
    for file in Path(str(room.__file__)).parent.glob("*.py"):
        assert not re.findall(r"(?:typer\.echo|print)\([^\n]*(?:json|dumps)\(", file.read_text()), file


def test_children_and_c_libraries_are_heard_on_stderr(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(LOUD)
    command = [*BURNISH, "rewards", "list", "--plugin", str(plugin), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "answer/loud-v1" in {row["id"] for row in json.loads(done.stdout)}
    assert sorted(done.stderr.splitlines()) == ["a C library", "a child", "as it loads", "at exit"]


def test_an_answer_that_nobody_reads_ends_well() -> None:
    read, unread = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*BURNISH, "env", "list", "--json"], stdout=unread, stderr=subprocess.PIPE, timeout=120, check=False)
    finally:
        os.close(unread)
    assert (done.returncode, done.stderr) == (0, b"")
