"""What each command does where the base alone is installed: its work, or one line that says what to install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from tests.unit.command_tree import commands

pytestmark = pytest.mark.unit

INSTALL = re.compile(r"error: .* not installed here: in burnish's checkout, (make install|pip install --constraint (\S+ )+'\.\[\w+\]')\n")

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 240
WORKS = """
recipe
new reward my-team/first-try
check burnish/Arithmetic-v0
env list
env check burnish/Arithmetic-v0
rewards list
rewards show burnish/abstention-v1
rewards check burnish/abstention-v1
rewards try burnish/abstention-v1 talks.jsonl
models list
data check talks.jsonl
data stats talks.jsonl
data dedup talks.jsonl
data contamination talks.jsonl --against rows.jsonl
data catalog burnish/general-v1 --show 1
keys new keys.toml ada
keys list keys.toml
keys revoke keys.toml ada
models delete nano
"""
SERVES = """
serve-verifier none/here-v1
serve-tools nowhere.py
serve-env none/Here-v0
"""
"""They would serve on, and tests/integration/test_base_install.py has them do it; here they have nothing to serve."""
NEEDS_MORE = """
run recipe.toml
suites
demo
evaluate nano recipe.toml
probe recipe.toml
find-rate recipe.toml
debug recipe.toml
branch run train-1/0 --recipe recipe.toml
tune recipe.toml --space space.toml
serve nano
deploy-verifier none/here-v1
deploy-tools nowhere.py
deploy-env none/Here-v0
undeploy world
deploy deployment.toml
package nano out
promote out deployment.toml --model m --version v1
rollouts run
replay run --all
report run
regrade run --reward burnish/math-v1
inspect .
models show nano
models lineage nano
models new small
models import pypi:none==1
models export nano out
models compare nano nano
models merge nano nano both
models check nano
env baseline burnish/CartPole-v0
data blend recipe.toml
data trace run 3
data replay nano out
guard check policy.toml
guard evaluate policy.toml talks.jsonl
guard serve policy.toml
guard train rows.jsonl --out out
feedback show store
feedback export store --as sft --out out.jsonl
feedback delete store id
runs list .
runs show run
runs diff run run
runs tail run
runs watch run
runs scale run --engines 2
runs export run out
runs frontier run
runs calibration run
"""
POLICY = """
name = "bank"
version = 1

[categories.rivals]
kind = "own"
action = "refuse"

[[patterns]]
name = "rival"
category = "rivals"
pattern = 'Rival'
"""
TALK = {"messages": [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "7"}]}


COMMANDS = sorted(commands(), key=len, reverse=True)


def command_of(line: str) -> str:
    return next(command for command in COMMANDS if f"{line} ".startswith(f"{command} "))


def lines_of(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """By command, how each line of the tables ends in a folder that has something for them."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    (folder / "models" / "nano").mkdir(parents=True)
    (folder / "policy.toml").write_text(POLICY)
    for name in ("talks.jsonl", "rows.jsonl"):
        (folder / name).write_text(json.dumps(TALK) + "\n")
    spec = spec_from_file_location("freeze", ROOT / "constraints" / "freeze.py")
    assert spec is not None and spec.loader is not None
    freeze = module_from_spec(spec)
    spec.loader.exec_module(freeze)
    lines = [*lines_of(WORKS), *lines_of(SERVES), *lines_of(NEEDS_MORE)]
    wanted = {"base": list(freeze.closure("burnish", frozenset())), "commands": [line.split() for line in lines]}
    program = [sys.executable, str(Path(__file__).with_name("base_commands.py"))]
    done = subprocess.run(program, cwd=folder, input=json.dumps(wanted), capture_output=True, text=True, timeout=WAIT_S, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return {command_of(line): (code, text) for line, (code, text) in zip(lines, said, strict=True)}


def test_every_command_is_tried(outcomes: dict[str, tuple[int, str]]) -> None:
    assert outcomes.keys() == set(COMMANDS)


def test_none_of_them_fails_at_an_import(outcomes: dict[str, tuple[int, str]]) -> None:
    assert {command: said for command, (_, said) in outcomes.items() if "No module named" in said or "fault in burnish" in said} == {}


def test_those_that_need_more_say_in_one_line_what_to_install(outcomes: dict[str, tuple[int, str]]) -> None:
    for line in lines_of(NEEDS_MORE):
        command = command_of(line)
        code, said = outcomes[command]
        assert code == 2 and INSTALL.fullmatch(said), (command, said)
    assert [line for line in [*lines_of(WORKS), *lines_of(SERVES)] if "not installed here" in outcomes[command_of(line)][1]] == []


def test_docs_install_lists_those_that_need_no_more() -> None:
    said = re.search(r"^With the base, (.*?) do their work", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE | re.DOTALL)
    assert said is not None
    named = [name.removeprefix("burnish ") for name in re.findall(r"`([^`]+)`", said[1])]
    groups = tuple(name.removesuffix("…") for name in named if name.endswith(" …"))
    listed = {command for command in COMMANDS if command in named or command.startswith(groups)}
    assert listed == {command_of(line) for line in [*lines_of(WORKS), *lines_of(SERVES)]}
