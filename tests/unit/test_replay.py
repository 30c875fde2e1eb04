"""`burnish replay`: recorded actions go through a fresh environment, and the first answer that differs is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from tests.unit.stored_run import INSPECTS, asked, played, recipe, seeded, stored, tiny_model
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.envs.contract import register_env
from burnish.envs.failures import Failure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import EpisodeGroup, Message
from burnish.inspector.stored import Which, chosen
from burnish.recipe.recorded import recorded_setup

pytestmark = pytest.mark.unit

now: dict[str, Any] = {}
"""What the environment of these tests does otherwise than when it was recorded: step -> change."""


class Counts(gymnasium.Env[Any, str]):
    """Counts to four. `now` is a change that somebody made to it since."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return (Message("user", now.get("greets", f"count from {seed}")),), {"data": {"answer": now.get("answer", (4, float("nan")))}}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        if now.get("breaks") == self.turn:
            raise OSError("the counter is stuck")
        done = self.turn == now.get("ends", 4)
        says = now["says"] if now.get("says_at") == self.turn else f"{self.turn}"
        gives = 0.25 if now.get("gives_at") != self.turn else 0.75
        info = {"reward_parts": {"counted": now.get("part", 0.1)}, "metrics": {"counts": float(self.turn) + now.get("metric", 0.0)}}
        return () if done else (Message("user", says),), gives, done, False, info


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register_env("tests/Counts-v0", Counts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def original(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = recipe(model, "tests/Counts-v0", max_turns=6)
    return stored(run, played(run, seeded(2), ["one", "zwölf"]), tmp_path_factory.mktemp("recorded") / "run")


@pytest.fixture
def counted(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(f"{__name__}.now", {})
    return shutil.copytree(original, tmp_path / "run")


def burnish(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


WORLDS: list[tuple[str, list[str], dict[str, Any]]] = [
    ("burnish/Arithmetic-v0", ["7", "12", "I do not know", ""], {}),
    ("burnish/GroundedAnswers-v0", ["gears", "30", "Friday", "I do not know", ""], {}),
    ("burnish/QualityInspection-v0", [*INSPECTS, "measure(", "hello"], {"max_turns": 8}),
    ("burnish/FrozenLake-v0", ["left", "down", "right", "up", "north"], {"max_turns": 12}),
    ("burnish/FrozenLake-v0", ["down", "right"], {"max_turns": 12, "environment_args": {"is_slippery": True, "max_turns": 5}}),
    ("burnish/Taxi-v0", ["south", "north", "pick up", "drop off"], {"max_turns": 8}),
    ("burnish/Blackjack-v0", ["stick", "hit", "?"], {"max_turns": 8}),
    ("burnish/CartPole-v0", ["left", "right"], {"max_turns": 12}),
]


@pytest.mark.parametrize(("id", "answers", "more"), WORLDS, ids=[f"{id}-{i}" for i, (id, *_) in enumerate(WORLDS)])
def test_every_episode_of_a_deterministic_environment_goes_as_recorded(
    id: str, answers: list[str], more: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    run = recipe(model, id, **more)
    groups = played(run, seeded(12), answers)
    assert len({episode.messages for group in groups for episode in group.episodes}) > 12  # they differ among themselves
    found = burnish("replay", stored(run, groups, tmp_path / "run"), "--all")
    assert (found.output, found.exit_code) == ("24 episodes replayed: 24 the same, 0 differ\n", 0)


def test_tasks_out_of_a_file_are_replayed_without_it(model: Path, tmp_path: Path) -> None:
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": name}]}))
    run = recipe(model, "burnish/SingleTurn-v0", tasks={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "held_out")})
    folder = stored(run, played(run, asked(5), ["1", "2"]), tmp_path / "run")
    (tmp_path / "train.jsonl").unlink()
    found = burnish("replay", folder, "--all")
    assert (found.output, found.exit_code) == ("10 episodes replayed: 10 the same, 0 differ\n", 0)


CHANGES = [
    ({"greets": "start"}, 0, "messages", [{"role": "user", "content": "count from 1000"}], [{"role": "user", "content": "start"}]),
    ({"says": "three", "says_at": 3}, 3, "messages", [{"role": "user", "content": "3"}], [{"role": "user", "content": "three"}]),
    ({"gives_at": 2}, 2, "reward", 0.25, 0.75),
    ({"ends": 2}, 2, "ended", "goes on", "done"),
    ({"ends": 5}, 4, "ended", "done", "goes on"),
    ({"part": 0.2}, 4, "parts", {"counted": 0.4}, {"counted": 0.8}),
    ({"metric": 1.0}, 4, "metrics", {"counts": 4.0}, {"counts": 5.0}),
    ({"answer": (5, 6)}, 4, "data", {"answer": [4, None]}, {"answer": [5, 6]}),
]


@pytest.mark.parametrize(("change", "step", "field", "recorded", "is_now"), CHANGES, ids=[str(row[0]) for row in CHANGES])
def test_a_change_is_found_at_its_first_step(counted: Path, change: Any, step: int, field: str, recorded: Any, is_now: Any) -> None:
    assert burnish("replay", counted, "--all").exit_code == 0
    now.update(change)
    found = burnish("replay", counted, "train-0/1", "--json")
    assert found.exit_code == 1
    (differs,) = json.loads(found.output)["differ"]
    assert (differs["phase"], differs["step"], differs["episode"]) == ("rft", 1, "train-0/1")
    assert differs["divergence"] == {"step": step, "field": field, "recorded": recorded, "now": is_now}


def test_what_the_terminal_says(counted: Path) -> None:
    assert burnish("replay", counted, "train-1/0").output.splitlines()[0] == "rft step 1, train-1/0: the same, 5 steps"
    now.update({"says": "\x1b[31mred", "says_at": 1})
    said = burnish("replay", counted, "train-1/0")
    assert said.output.splitlines() == [
        "rft step 1, train-1/0: differs at step 1, in messages",
        '  recorded [{"role": "user", "content": "1"}]',
        '  now      [{"role": "user", "content": "\\u001b[31mred"}]',
        "1 episode replayed: 0 the same, 1 differ",
    ]
    now.clear()
    now["breaks"] = 2
    assert "train-1/0: fails at step 2: env_error in tests/Counts-v0" in burnish("replay", counted, "train-1/0").output


def test_failed_episodes_are_left_out_and_said(model: Path, tmp_path: Path) -> None:
    now.clear()
    run = recipe(model, "tests/Counts-v0", max_turns=6)
    (group,) = played(run, seeded(1), ["one"])
    broken = replace(group.episodes[1], outcome=Failure(FailureKind.ENV_ERROR, "tests/Counts-v0", "it broke"), trajectories=())
    folder = stored(run, [EpisodeGroup(group.task, (group.episodes[0], broken))], tmp_path / "run")
    found = burnish("replay", folder, "--all")
    assert (found.output, found.exit_code) == ("1 episode replayed: 1 the same, 0 differ, 1 left out (it failed)\n", 0)


def test_what_is_asked_for_must_be_there(counted: Path) -> None:
    assert [episode.id for episode in chosen(counted, Which(step=1))] == ["train-0/0", "train-0/1", "train-1/0", "train-1/1"]
    for arguments, said in (
        (["--all", "--step", "7"], "no such episodes; stored are rft up to step 1"),
        (["train-9/0"], "no episode 'train-9/0' like that"),
        ([], "give the id of one episode"),
        (["train-0/0", "--all"], "give the id of one episode"),
    ):
        found = burnish("replay", counted, *arguments)
        assert found.exit_code == 2 and said in found.stderr, found.stderr


def test_code_that_lies_in_the_run_folder_is_not_run(counted: Path) -> None:
    file, config = counted / "planted.py", counted / "config.json"
    file.write_text("raise SystemExit('this ran')")
    whole = json.loads(config.read_text())
    changes: list[dict[str, Any]] = [
        {"plugins": [str(file)]},
        {"environment": f"{file}:tests/Counts-v0"},
        {"services": {"s": {"tools": str(file)}}},
        {"services": {"s": {"environment": "burnish/Arithmetic-v0", "python": str(file)}}},
    ]
    for change in changes:
        config.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match="lies in the run folder itself"):
            recorded_setup(counted)
        found = burnish("replay", counted, "--all")
        assert found.exit_code == 2 and "not run" in found.stderr and "this ran" not in found.output


@pytest.mark.parametrize(
    "arguments",
    [
        {"describe": "FILE:f"}, {"describe": "FILE"}, {"deep": [{"x": {"describe": "FILE:f"}}]}, {"FILE:f": 1},
        {"env_id": "runs.evil.code:X-v0"},
        {"python": "runs/evil/bin/python"}, {"describe": "runs.evil.code:f"},
    ],
)  # fmt: skip
def test_no_argument_names_code_in_the_run_folder(
    counted: Path, tmp_path: Path, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "here" / "runs" / "evil"
    shutil.copytree(counted, home)
    (home / "code.py").write_text("raise SystemExit('this ran')")
    (home / "bin").mkdir()
    (home / "bin" / "python").write_text("#!/bin/false")
    monkeypatch.chdir(tmp_path / "here")
    whole = json.loads((home / "config.json").read_text())
    given = json.loads(json.dumps(arguments).replace("FILE", "runs/evil/code.py"))
    service = {"s": {"environment": "burnish/Arithmetic-v0", "kwargs": given}}
    blend = {**whole["rft"], "blend": [{"environment": "burnish/Arithmetic-v0", "percent": 20, "environment_args": given}]}
    for change in ({"environment_args": given}, {"services": service}, {"rft": blend}):
        (home / "config.json").write_text(json.dumps({**whole, **change}))
        for outward in (False, True):
            with pytest.raises(ValueError, match="lies in the run folder itself"):
                recorded_setup(home, outward)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"address": "10.0.0.1:50051"}, "environment_args.address names an address"),
        ({"address": "h.example:1?token_env=AWS_SECRET_ACCESS_KEY"}, "environment_args.address names an address"),
        ({"deep": [{"tools": "a:1,b:2"}]}, "names an address"),
        ({"tools": "ray:verdicts"}, "names an address"),
        ({"url": "https://h.example/x"}, "names an address"),
        ({"api_key_env": "AWS_SECRET_ACCESS_KEY"}, "environment_args.api_key_env names a variable or file that holds a secret"),
        ({"token_file": "/etc/secrets/token"}, "names a variable or file that holds a secret"),
        ({"tools": "service:far"}, "services.far.address names an address"),
    ],
)
def test_no_argument_leads_outward_unless_that_is_allowed(counted: Path, arguments: dict[str, Any], said: str) -> None:
    config = counted / "config.json"
    services = {"far": {"address": "h.example:1"}, "unused": {"address": "i.example:1"}}
    whole = {**json.loads(config.read_text()), "services": services}
    config.write_text(json.dumps(whole))
    recorded_setup(counted)  # a service that no environment uses is not called
    config.write_text(json.dumps({**whole, "environment_args": arguments}))
    with pytest.raises(ValueError, match=said):
        recorded_setup(counted)
    assert recorded_setup(counted, outward=True).environment.args == arguments
    found = burnish("replay", counted, "--all")
    assert found.exit_code == 2 and "--outward" in found.stderr


@pytest.mark.parametrize("target", ["runs.evil.plugin:tests/Counts-v0", "runs.evil:tests/Counts-v0", "runs.evil.compiled:tests/Counts-v0"])
def test_a_dotted_module_in_the_run_folder_is_not_run(counted: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "here" / "runs" / "evil"
    shutil.copytree(counted, home)
    (home / "plugin.py").write_text("raise SystemExit('this ran')")
    (home / "compiled.pyc").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "here")
    whole = json.loads((home / "config.json").read_text())
    for change in ({"environment": target}, {"services": {"s": {"tools": target.partition(":")[0] + ":make"}}}):
        (home / "config.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match="lies in the run folder itself"):
            recorded_setup(home)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("messages", "[" * 100_000, "/0': maximum recursion"),
        ("env_data", "[1]", "env_data must be an object, not list"),
        ("task_data", "5", "task_data must be an object, not int"),
        ("parts", "x", "column 'parts' is string, not map<string, double>"),
    ],
)
def test_a_stored_episode_that_is_none_is_said_in_a_line(counted: Path, column: str, value: str, said: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = next((counted / "episodes").glob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array([value] * len(table))), file)
    found = burnish("replay", counted, "--all")
    assert found.exit_code == 2 and said in found.stderr and file.name in found.stderr, found.stderr


def test_a_config_that_is_none_and_a_store_of_before_are_refused(counted: Path) -> None:
    import pyarrow.parquet as pq

    file = next((counted / "episodes").glob("*.parquet"))
    pq.write_table(pq.read_table(file).drop_columns(["env_data"]), file)
    assert "no column 'env_data', as an earlier burnish wrote them" in burnish("replay", counted, "--all").stderr
    (counted / "config.json").write_text('{"name": "x", "mode": 1}')
    assert burnish("replay", counted, "--all").exit_code == 2


@pytest.mark.parametrize("command", [("replay", "--all"), ("regrade", "--reward", "burnish/inspection-cost-v1"), ("rollouts",)])
def test_a_split_and_a_mode_that_do_not_exist_are_refused_by_name(counted: Path, command: tuple[str, ...]) -> None:
    for option, value, there in (("--split", "test", "heldout"), ("--mode", "greed", "greedy")):
        found = burnish(command[0], counted, *command[1:], option, value)
        assert found.exit_code == 2 and option in found.stderr and value in found.stderr and there in found.stderr
