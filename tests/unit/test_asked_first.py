"""A command that plays or scores stored episodes asks the services that it needs once, before it begins, and ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.stored_run import recipe, stored, tiny_model
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.types import Episode, EpisodeGroup, Message, Reward, Task
from burnish.rpc.errors import RpcUnavailable
from burnish.testing import MockTransport

pytestmark = pytest.mark.unit

DEAD = "dead.example:50051"
JUDGED = '[[rewards]]\nverifier = "dead.example:50051"\nname = "judge"\n'
BLENDED = """
[[rft.blend]]
name = "far"
environment = "burnish/Remote-v0"
percent = 50
environment_args = { address = "dead.example:50051" }
"""
SUITE = """
from burnish.envs.types import Task
from burnish.rewards.config import RewardConfig
from burnish.trainer.evaluation.suites.suite import Suite, register_suite

JUDGE = RewardConfig(verifier="dead.example:50051", name="judge")
register_suite(Suite("asked/dead-v1", "One.", tasks=lambda items: [Task("a", 0)], rewards=(JUDGE,)))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("asked") / "tiny")


@pytest.fixture
def dead() -> Iterator[MockTransport]:
    """Nobody at this address; what was asked there is in `calls`."""

    def answer(method: str, request: Any) -> Any:
        raise RpcUnavailable(DEAD, "could not connect")

    with MockTransport(answer, DEAD) as mock:
        yield mock


def ends(dead: MockTransport, what: str, *arguments: str | Path) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr == f"error: {what} at {DEAD} does not answer: could not connect\n"
    assert [call.method for call in dead.calls] == ["Describe"]


def many(model: Path, folder: Path, environment: str = "burnish/Arithmetic-v0", **args: Any) -> Path:
    """A run of forty episodes."""
    said = (Message("user", "1 + 1"), Message("assistant", "2"))
    tasks = [Task(f"train-{i}", i) for i in range(20)]
    groups = [EpisodeGroup(task, tuple(Episode(task, i, (), said, Reward(1.0, {"env": 1.0})) for i in range(2))) for task in tasks]
    return stored(recipe(model, environment, environment_args=args), groups, folder)


def test_regrade(dead: MockTransport, model: Path, tmp_path: Path) -> None:
    run, file = many(model, tmp_path / "run"), tmp_path / "r.toml"
    ends(dead, "verifier 'verifier'", "regrade", run, "--verifier", DEAD)
    dead.calls.clear()
    file.write_text(f'name = "r"\nmodel = "{model}"\nenvironment = "burnish/Arithmetic-v0"\n{JUDGED}')
    ends(dead, "verifier 'judge'", "regrade", run, "--recipe", file)


def test_replay(dead: MockTransport, model: Path, tmp_path: Path) -> None:
    run = many(model, tmp_path / "run", "burnish/Remote-v0", address=DEAD)
    ends(dead, "environment service", "replay", run, "--all", "--outward")


@pytest.mark.parametrize("judge", [JUDGED, BLENDED], ids=["verifier", "environment"])
def test_branch(dead: MockTransport, judge: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.cli.branch.needs_engine", lambda command: None)
    task = replace(Task("train-0", 0), environment="" if judge == JUDGED else "far")
    said = (Message("user", "1 + 1"), Message("assistant", "2"))
    group = EpisodeGroup(task, (Episode(task, 0, (), said, Reward(1.0, {"env": 1.0})),))
    run, file = stored(recipe(model, "burnish/Arithmetic-v0"), [group], tmp_path / "run"), tmp_path / "r.toml"
    file.write_text(f'name = "r"\nmodel = "{model}"\nenvironment = "burnish/Arithmetic-v0"\n{judge}')
    what = "verifier 'judge'" if judge == JUDGED else "environment service"
    ends(dead, what, "branch", run, "train-0/0", "--recipe", file, "--model", model)


def test_debug(dead: MockTransport, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(f'name = "r"\nmodel = "{model}"\nenvironment = "burnish/Arithmetic-v0"\n{JUDGED}')
    ends(dead, "verifier 'judge'", "debug", file)


def test_evaluate_by_a_suite(dead: MockTransport, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.cli.evaluate_command.needs_engine", lambda command: None)
    (tmp_path / "suite.py").write_text(SUITE)
    ends(dead, "verifier 'judge'", "evaluate", model, "--suite", "asked/dead-v1", "--plugin", tmp_path / "suite.py")
