"""A run folder names code only that is registered: anything else is imported for whoever says that the run is his own, and nobody else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.envs.named import names_code
from burnish.envs.registry import load_plugin
from burnish.recipe.named import of_our_worlds

pytestmark = pytest.mark.unit

RECIPE = """
name = "r"
model = "{model}"
environment = "burnish/Arithmetic-v0"
[engine]
max_context = 256
[rft]
steps = 1
"""


CODE = (
    "words.py:describe",
    "service:f",
    "a b.py:f",
    "words.py",
    "cProfile:run",
    "a.b:f",
    "my-mod:Env-v0",
    "my mod:Env-v1",
    "m:a/Env-v0",
    "Play: Go-v1",
    "a:-v1",
    ":a:\nb-v12",
)
PLAIN = (
    "FrozenLake-v1",
    "words.:describe",
    "a/Env-v0",
    "Answer: yes or no",
    "h.example:50051",
    "https://h/x",
    "local",
    "",
    ":",
    ":a-v1",
    "12:30",
    "runs/x/model",
)


@pytest.mark.parametrize(("text", "is_code"), [*((text, True) for text in CODE), *((text, False) for text in PLAIN)])
def test_what_names_code_is_told_from_what_does_not(text: str, is_code: bool) -> None:
    assert names_code(text) is is_code


def test_a_long_text_is_told_at_once_to_name_no_code() -> None:
    assert not names_code(":-v1" * 250_000 + "!")
    assert names_code("m" + ":-v1" * 250_000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, in the folder that burnish is started in; beside it `mine.py`, whose import leaves a mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef f(*given): return ''\n")
    run = recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0")
    return stored(run, played(run, seeded(1), ["7"]), tmp_path / "runs" / "one")


def burnish(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


USED = {"environment": "burnish/Gymnasium-v0", "environment_args": {"env_id": "FrozenLake-v1"}}
TAXI = {"environment": "burnish/Taxi-v0"}
NAMED: list[tuple[str, dict[str, Any]]] = [
    ("plugins.0", {"plugins": ["mine.py"]}),
    ("environment", {"environment": "mine:burnish/Arithmetic-v0"}),
    ("environment", {"environment": "mine.py:burnish/Arithmetic-v0"}),
    ("environment", {"environment": "my mod:burnish/Arithmetic-v0"}),
    ("services.s.environment", {"services": {"s": {"environment": "my-mod:a/Env-v0"}}, "environment_args": {"at": "service:s"}}),
    ("services.s.verifier", {"services": {"s": {"verifier": "my-mod:f"}}, "environment_args": {"at": "service:s"}}),
    ("environment_args.describe", {**USED, "environment_args": {"env_id": "FrozenLake-v1", "describe": "mine:f"}}),
    ("environment_args.deep.0.x", {**USED, "environment_args": {"env_id": "FrozenLake-v1", "deep": [{"x": "mine.py:f"}]}}),
    ("environment_args.env_id", {**USED, "environment_args": {"env_id": "mine:FrozenLake-v1"}}),
    ("services.s.tools", {"services": {"s": {"tools": "mine"}}, "environment_args": {"tools": "service:s"}}),
    ("services.s.python", {"services": {"s": {**TAXI, "python": "py"}}, "environment_args": {"at": "service:s"}}),
    ("services.s.kwargs.x", {"services": {"s": {**TAXI, "kwargs": {"x": "mine:f"}}}, "environment_args": {"at": "service:s"}}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "change"), NAMED, ids=[f"{i}-{field}" for i, (field, _) in enumerate(NAMED)])
def test_a_replay_imports_nothing_that_only_the_run_names(folder: Path, field: str, change: dict[str, Any]) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    found = burnish("replay", folder, "--all")
    assert found.exit_code == 2 and f"{field} names" in found.stderr and "--trust" in found.stderr, found.output
    assert not Path("ran").exists() and len(found.stderr.strip().splitlines()) == 1


OURS = "burnish.envs.builtin.inspection"


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        (f"{OURS}.service", True),
        (f"{OURS}.corpus:documents", True),
        ("burnish.rewards.builtin.inspection:verdict", True),
        (f"{OURS}.service:os", False),
        (f"{OURS}.service:Path", False),
        (f"{OURS}.service:nothing", False),
        (f"{OURS}.nothing", False),
        (f"{OURS}/../x.py", False),
        ("burnish.envs.registry:load_plugin", False),
        ("burnish.envs.builtinx.y", False),
        ("burnish.envs.builtin.", False),
    ],
)
def test_the_worlds_that_burnish_ships_are_taken_by_what_they_define(name: str, taken: bool) -> None:
    assert of_our_worlds(name) is taken


def test_a_run_in_a_world_of_ours_is_replayed_as_it_stands(folder: Path) -> None:
    config = folder / "config.json"
    used = {"services": {"s": {"tools": f"{OURS}.service"}}, "environment_args": {"at": "service:s"}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **used}))
    said = burnish("replay", folder, "--all").output
    assert "--trust" not in said, said


def test_whoever_trusts_a_run_or_names_its_code_himself_replays_it(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "plugins": ["mine.py"]}))
    assert burnish("replay", folder, "--all", "--trust").exit_code == 0 and Path("ran").exists()
    assert burnish("replay", folder, "--all", "--plugin", "mine.py").exit_code == 0
    unused = {"services": {"s": {"verifier": "mine:f"}}, "plugins": []}
    config.write_text(json.dumps({**json.loads(config.read_text()), **unused}))
    assert burnish("replay", folder, "--all").exit_code == 0, "a replay scores nothing, and starts no verifier"


WAYS: list[tuple[str, ...]] = [
    ("branch", "RUN", "train-0/0", "--recipe", "RECIPE"),
    ("regrade", "RUN", "--recipe", "RECIPE"),
    ("debug", "RECIPE"),
    ("evaluate", "tiny", "RECIPE"),
]


@pytest.mark.parametrize("way", WAYS, ids=[way[0] for way in WAYS])
def test_a_recipe_that_lies_in_a_run_folder_is_that_folders_word(
    folder: Path, way: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("branch", "debug", "evaluate_command"):
        monkeypatch.setattr(f"burnish.cli.{command}.needs_engine", lambda command: None)
    own = folder / "recipe.toml"
    reward = '[[rewards]]\nuse = "burnish/reward-lambda-v1"\nargs = { handler = "HANDLER" }\n'
    used = '[[rewards]]\nverifier = "service:s"\n'
    for more, said in (
        (reward.replace("HANDLER", "mine:f"), "rewards.0.args.handler names"),
        (reward.replace("HANDLER", "https://h.example/x"), "rewards.0.args.handler names an address"),
        ('[rft.objective]\nloss = "mine.py:f"\n', "rft.objective.loss names"),
        ('[sft]\nsteps = 1\ngenerate = "mine:f"\n', "sft.generate names"),
        (f'{used}[services.s]\nverifier = "mine:f"\n', "services.s.verifier names"),
        (f'{used}[services.s]\naddress = "h.example:1"\n', "services.s.address names an address"),
    ):
        own.write_text(RECIPE.format(model="tiny") + more)
        found = burnish(*(str({"RUN": folder, "RECIPE": own}.get(word, word)) for word in way))
        assert found.exit_code == 2 and said in found.stderr and "--trust" in found.stderr, found.output
    own.write_text('plugins = ["mine.py"]\n' + RECIPE.format(model="tiny"))
    found = burnish(*(str({"RUN": folder, "RECIPE": own}.get(word, word)) for word in way))
    assert found.exit_code == 2 and "plugins.0 names" in found.stderr and not Path("ran").exists()


@pytest.mark.parametrize("way", [("branch", "RUN", "train-0/0"), ("regrade", "RUN"), ("debug", "RUN")], ids=["branch", "regrade", "debug"])
def test_the_recipe_that_a_run_recorded_is_its_folders_word_too(
    folder: Path, way: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.cli.branch.needs_engine", lambda command: None)
    config = folder / "config.json"
    recorded = json.loads(config.read_text())
    for more, said in (
        ({"plugins": ["mine.py"]}, "plugins.0 names"),
        ({"rewards": [{"use": "burnish/reward-lambda-v1", "args": {"handler": "https://h.example/x"}}]}, "names an address"),
    ):
        config.write_text(json.dumps({**recorded, **more}))
        found = burnish(*(str({"RUN": folder}.get(word, word)) for word in way))
        assert found.exit_code == 2 and said in found.stderr and "--trust" in found.stderr, found.output
    assert not Path("ran").exists()


POLICY = """
name = "p"
version = 1
[categories.c]
kind = "own"
action = "warn"
[[detectors]]
use = "burnish/judge-v1"
name = "j"
category = "c"
args = { model = "m", ARGS }
"""


@pytest.mark.parametrize("way", [WAYS[1], WAYS[2]], ids=["regrade", "debug"])
def test_neither_a_recipe_of_a_run_nor_a_policy_that_it_names_leads_out(
    folder: Path, way: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setattr("burnish.cli.debug.needs_engine", lambda command: None)
    monkeypatch.setenv("MY_SECRET", "x")
    recipe, reward = folder / "recipe.toml", '[[rewards]]\nuse = "USED"\nweight = 0.5\nargs = ARGS\n'
    asked = '{ type = "label_model", name = "g", model = "m", labels = ["a", "b"], passing_labels = ["a"], input = [SAID] }'
    grader = f'{{ grader = {asked}, api_key_env = "MY_SECRET" }}'.replace("SAID", '{ role = "user", content = "x" }')
    recipe.write_text(RECIPE.format(model="tiny") + reward.replace("USED", "burnish/openai-grader-v1").replace("ARGS", grader))
    found = burnish(*(str({"RUN": folder, "RECIPE": recipe}.get(word, word)) for word in way))
    assert found.exit_code == 2 and "rewards.0.args.api_key_env names a variable or file that holds a secret" in found.stderr, found.output
    policy = folder / "policy.toml"
    used = reward.replace("USED", "burnish/guardrail-v1").replace("ARGS", f'{{ policy = "{policy}" }}')
    recipe.write_text(RECIPE.format(model="tiny") + used)
    for args, said in (
        ('base_url = "https://h.example/v1"', "detectors.0.args.base_url names an address"),
        ('api_key_env = "MY_SECRET"', "detectors.0.args.api_key_env names a variable or file that holds a secret"),
    ):
        policy.write_text(POLICY.replace("ARGS", args))
        found = burnish(*(str({"RUN": folder, "RECIPE": recipe}.get(word, word)) for word in way))
        assert found.exit_code == 2 and said in found.stderr and "--trust" in found.stderr, found.output
        assert len(found.stderr.strip().splitlines()) == 1


def test_whoever_trusts_a_recipe_of_a_run_or_keeps_it_elsewhere_has_its_code_run(folder: Path) -> None:
    for place, trust in ((folder / "recipe.toml", ["--trust"]), (Path("recipe.toml"), [])):
        place.write_text('plugins = ["mine.py"]\n' + RECIPE.format(model="tiny"))
        assert burnish("debug", place, *trust).exit_code == 0
        Path("ran").unlink()
        sys.modules.pop(load_plugin("mine.py"))
