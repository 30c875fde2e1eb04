"""Targets of the serve commands: found, or refused with one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from burnish.hosting.services import load_tools, load_verifier, load_verifiers

pytestmark = pytest.mark.unit

CODE = '''
from burnish.envs.tools import ToolSet, tool
from burnish.rewards.remote.service import verifier

@verifier("test/target-v1")
def judge(episode):
    return 1.0

@tool
def add(a: int, b: int) -> str:
    """Add."""
    return str(a + b)

@tool
def subtract(a: int, b: int) -> str:
    """Subtract."""
    return str(a - b)

only_add = ToolSet([add])
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("services") / "targets.py"
    path.write_text(CODE)
    return path


def test_targets_are_found(plugin: Path) -> None:
    assert load_verifier(f"{plugin}:judge").id == "test/target-v1"
    assert load_verifier("test/target-v1").id == "test/target-v1"
    assert load_tools(str(plugin)).names == ["add", "subtract"]
    assert load_tools(f"{plugin}:only_add").names == ["add"]


def test_a_module_without_a_name_serves_all_it_has(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    decorated = '@verifier("test/{0}-v1")\ndef {0}(episode): return 1.0\n'
    path.write_text("from burnish import verifier\n" + decorated.format("first") + decorated.format("second"))
    assert [one.id for one in load_verifiers(str(path))] == ["test/first-v1", "test/second-v1"]
    assert [one.id for one in load_verifiers(f"{path}:second")] == ["test/second-v1"]
    with pytest.raises(ValueError, match="'json' has no verifiers; decorate functions with @verifier"):
        load_verifiers("json")


def test_wrong_targets_say_what_to_do(plugin: Path) -> None:
    for target, says in {
        f"{plugin}": "give module:name",
        f"{plugin}:juge": "there is no 'juge'; did you mean 'judge'",
        f"{plugin}:add": "decorate the function with @verifier",
        "no_such_module_here:f": "module 'no_such_module_here' cannot be imported",
        "/nowhere/x.py:f": "is not a file",
        "test/targt-v1": "did you mean 'test/target-v1'",
    }.items():
        with pytest.raises(ValueError, match=says):
            load_verifier(target)
    with pytest.raises(ValueError, match="not a ToolSet; leave out ':add'"):
        load_tools(f"{plugin}:add")
    with pytest.raises(ValueError, match="has no tools"):
        load_tools("json")


def test_the_program_stays_light() -> None:
    code = "import sys, burnish.hosting.services; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=True)
    assert done.stdout.strip() == "[]"
