"""`burnish new`: which names it takes, what it writes, and that it writes all or nothing."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.cli.scaffold import Component, Kind, parse_name, render
from burnish.envs.builtin.arithmetic import Arithmetic
from burnish.envs.contract import is_gymnasium_id
from burnish.envs.registry import ID_PATTERN
from burnish.envs.types import Message, Task
from burnish.recipe.load import load_config
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.unit

KINDS: tuple[Kind, ...] = get_args(Kind)


def new(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["new", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("kind", "name", "id", "module"),
    [
        ("reward", "my-team/answer-length", "my-team/answer-length-v1", "my_team_answer_length.reward"),
        ("verifier", "answer-length", "answer-length/answer-length-v1", "answer_length.verifier"),
        ("environment", "my-team/guess-2-numbers", "my-team/Guess2Numbers-v0", "my_team_guess_2_numbers.environment"),
        ("tools", "my-team/shelf", "", "my_team_shelf.tools"),
        ("reward", "my-team/json", "my-team/json-v1", "my_team_json.reward"),
    ],
)
def test_what_a_name_becomes(kind: Kind, name: str, id: str, module: str) -> None:
    component = parse_name(kind, name)
    assert (component.id, component.module) == (id, module)
    assert not id or ID_PATTERN.match(id)
    assert kind != "environment" or is_gymnasium_id(id)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Answer", "must read like answer, in small letters"),
        ("me/Guess", "must read like me/guess, in small letters"),
        ("My Team/guessWord", "must read like my-team/guess-word, in small letters"),
        ("a/b/c", "must read like answer-length or my-team/answer-length, in small letters"),
        ("answer_length", "must read like"),
        ("answer\n", "must read like"),
        ("../answer", "must read like"),
        ("/answer", "must read like"),
        ("a/b/c", "must read like"),
        ("2-answers", "must read like"),
        ("", "must read like"),
        ("my-team/answer-v1", "leave out the version"),
        ("my-team/env", "no part of a reward may be called 'env'"),
        ("json", "json is the name of another Python module"),
        ("numpy", "numpy is the name of another Python module"),
        ("class", "class is the name of another Python module"),
        ("x" * 61, "is 61 characters long"),
    ],
)
def test_a_bad_name_is_one_clear_line(name: str, sentence: str, tmp_path: Path) -> None:
    code, out, error = new("reward", "--dir", str(tmp_path), "--", name)
    assert (code, out) == (2, "")
    assert sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "my-team-answer").mkdir()
    code, _, error = new("reward", "my-team/answer", "--dir", str(tmp_path))
    assert code == 2
    assert error == f"error: {tmp_path / 'my-team-answer'} exists already; choose another place or remove it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my-team-answer"]
    assert not list((tmp_path / "my-team-answer").iterdir())


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *arguments: object, **keywords: object) -> int:
        if path.suffix == ".toml":
            raise OSError(28, "No space left on device", str(path))
        return path.write_bytes(b"")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, error = new("reward", "my-team/answer", "--dir", str(tmp_path))
    assert code == 1 and "No space left on device" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_what_its_name_says(kind: Kind, tmp_path: Path) -> None:
    code, out, _ = new(kind, "my-team/answer-length", "--dir", str(tmp_path / "deep" / "er"))
    folder = tmp_path / "deep" / "er" / "my-team-answer-length"
    assert code == 0 and str(folder / "README.md") in out
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == render(Component(kind, "my-team", "answer-length"))
    written = {"README.md", "pyproject.toml", "src/my_team_answer_length/__init__.py", f"src/my_team_answer_length/{kind}.py"}
    assert written | {f"tests/test_{kind}.py"} <= set(files)
    assert ("recipe.toml" in files) == (kind != "tools")
    for path, text in files.items():
        assert "{{" not in text and "{%" not in text and text.endswith("\n") and not text.endswith("\n\n"), path
        assert max(map(len, text.splitlines())) <= 180, path
        match Path(path).suffix:
            case ".py":
                ast.parse(text)
            case ".toml":
                tomllib.loads(text)
            case ".jsonl":
                assert all(json.loads(line)["messages"] for line in text.splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_the_entry_point_names_what_the_module_defines(kind: Kind) -> None:
    component = parse_name(kind, "my-team/answer-length")
    files = render(component)
    entries = tomllib.loads(files["pyproject.toml"])["project"].get("entry-points", {})
    if kind == "tools":
        assert entries == {}
        return
    groups = {"reward": "burnish.rewards", "environment": "burnish.envs", "verifier": "burnish.verifiers"}
    ((id, target),) = entries[groups[kind]].items()
    module, _, attribute = target.partition(":")
    assert (id, module) == (component.id, component.module)
    defined = {node.name for node in ast.parse(files[f"src/{component.package}/{kind}.py"]).body if hasattr(node, "name")}
    assert attribute in defined


@pytest.mark.parametrize(
    ("said", "right"),
    [("7", True), ("07", True), ("It is 7.0.", True), ("7.5", False), ("-7", False), ("1,007", False), ("7 or 8", False), ("Seven", False)],
)
def test_what_is_written_reads_numbers_as_the_first_environment_does(said: str, right: bool) -> None:
    arithmetic = Arithmetic()
    arithmetic._answer = 7
    assert arithmetic.step(said)[1] == right
    answered = RewardInput("t/0", Task("t", 0), (Message("user", "What is 3 + 4?"), Message("assistant", said)), 0.0, data={"answer": 7})
    named: dict[Kind, str] = {"reward": "score", "verifier": "judge"}
    for kind, called in named.items():
        component, names = Component(kind, "scaffold-numbers", "answer"), dict[str, Any]()
        exec(render(component)[f"src/{component.package}/{kind}.py"], names)
        judged = names[called] if kind == "reward" else names[called].function
        assert judged(answered).value == right, kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tools"])
@pytest.mark.parametrize("name", ["reward", "success", "a/b"])
def test_the_recipe_is_one_whatever_the_name(kind: Kind, name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(render(parse_name(kind, name))["recipe.toml"])
    assert load_config(recipe).name == parse_name(kind, name).name


def test_the_check_in_the_readme_of_tools_calls_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new("tools", "readme-test/shelf", "--dir", str(tmp_path))[0] == 0
    folder = tmp_path / "readme-test-shelf"
    monkeypatch.syspath_prepend(folder / "src")
    (line,) = re.findall(r"^burnish (check .*)", (folder / "README.md").read_text(), re.MULTILINE)
    said = CliRunner().invoke(app, shlex.split(line, comments=True))
    assert said.exit_code == 0 and "readme_test_shelf.tools: passed" in said.output
