"""Whether another interpreter could run a service: asked of programs that stand for one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from burnish.hosting.process import check_interpreter
from burnish.hosting.services import PROTOCOL
from burnish.recipe.components import check_components
from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve

pytestmark = pytest.mark.integration

VERIFIER = """
from burnish import verifier

@verifier("test/elsewhere-v1")
def judge(episode):
    return 1.0
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "elsewhere.py").write_text(VERIFIER)
    return f"{tmp_path / 'elsewhere.py'}:judge"


def program(folder: Path, shell: str) -> Path:
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{shell}\n")
    file.chmod(0o755)
    return file


def test_this_interpreter_can(target: str) -> None:
    assert PROTOCOL == "burnish.v1"
    check_interpreter(Path(sys.executable), "verifier", target)
    check_interpreter(Path(sys.executable), "environment", "burnish/Arithmetic-v0", {"max_operand": 20})


@pytest.mark.parametrize(
    ("shell", "says"),
    [
        (
            f'exec {sys.executable} -S -E "$@"',
            "{python} has no burnish; install it there, in burnish's checkout: {python} -m pip install --constraint constraints/cpu.txt .",
        ),
        (
            """echo '{"protocol": "burnish.v2"}'""",
            "{python} has a burnish that speaks burnish.v2, and this one speaks burnish.v1; install the same one there",
        ),
        ("echo hello", "{python} is no Python with burnish: asked for its protocol, it printed 'hello\\n'"),
        ("exit 3", "{python} cannot serve this verifier: it ended with code 3"),
        ("sleep 30", "{python} did not load {target!r} within 0.5 s"),
    ],
)
def test_another_that_cannot_is_one_sentence(tmp_path: Path, target: str, shell: str, says: str) -> None:
    python = program(tmp_path, f"exec {shell}" if shell.startswith("sleep") else shell)
    with pytest.raises(ValueError) as caught:
        check_interpreter(python, "verifier", target, wait_s=0.5 if "sleep" in shell else 120)
    assert str(caught.value) == says.format(python=python, target=target)


def test_a_target_that_it_cannot_load_is_said_in_its_words(target: str) -> None:
    with pytest.raises(ValueError, match=r"cannot serve this verifier: .*there is no 'juge'; did you mean 'judge'\?"):
        check_interpreter(Path(sys.executable), "verifier", target.replace(":judge", ":juge"))
    with pytest.raises(ValueError, match=r"cannot serve this environment: .*max_operands"):
        check_interpreter(Path(sys.executable), "environment", "burnish/Arithmetic-v0", {"max_operands": 20})


def test_what_is_no_program_cannot_be_run(tmp_path: Path, target: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a program")
    with pytest.raises(ValueError, match=r"notes\.txt cannot be run: Permission denied"):
        check_interpreter(file, "verifier", target)


def config(python: str, verifier: str) -> RunConfig:
    data: dict[str, Any] = {
        "name": "x",
        "model": "m",
        "environment": "burnish/Arithmetic-v0",
        "rewards": [{"verifier": "service:judge"}],
        "services": {"judge": {"verifier": verifier, "python": python}},
    }
    return config_from_data(data, "r.toml")


def test_an_interpreter_that_is_not_there_is_found_as_the_recipe_is_read() -> None:
    with pytest.raises(ValueError) as caught:
        config(".venv-judge/bin/python", "m:judge")
    assert str(caught.value) == "r.toml: services.judge.python: .venv-judge/bin/python is not a file"


def test_a_folder_called_burnish_where_one_starts_is_not_taken_for_this_one(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "burnish").mkdir()
    (tmp_path / "burnish" / "__init__.py").write_text("raise RuntimeError('somebody else')")
    monkeypatch.chdir(tmp_path)
    check_interpreter(Path(sys.executable), "verifier", target)


def test_the_dry_run_asks_the_interpreter_and_not_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The module exists only for the other interpreter, which is given by a path relative to where burnish is started.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "only_there.py").write_text(VERIFIER)
    monkeypatch.chdir(tmp_path)
    program(tmp_path, f'PYTHONPATH={elsewhere} exec {sys.executable} "$@"')
    check_components(resolve(config("python", "only_there:judge")))
    with pytest.raises(ValueError) as caught:
        check_components(resolve(config("python", "only_there:juge")))
    expected = "services.judge.python: python cannot serve this verifier: 'only_there:juge': there is no 'juge'; did you mean 'judge'?"
    assert str(caught.value) == expected
