"""`burnish debug`: one episode on the main thread of one process, where breakpoints fire and nothing hurries them."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.stored_run import tiny_model
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.recipe.load import config_from_data, load_config
from burnish.recipe.resolve import resolve
from burnish.run.debugging import task_named
from burnish.run.folder import create_run

pytestmark = pytest.mark.unit

PLUGIN = """
import gymnasium
from burnish import Message, reward
from burnish.envs import register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText

class Asks(gymnasium.Env):
    observation_space, action_space = MessagesSpace(), UnicodeText()
    def __init__(self, breaks=False):
        self.breaks = breaks
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = []
        return (Message("user", f"say something, {seed}"),), {}
    def step(self, action):
        breakpoint()
        if self.breaks:
            raise OSError("the gauge is broken")
        self.said.append(action)
        done = len(self.said) == 2
        return () if done else (Message("user", "once more"),), 0.0, done, False, {}

register_env("debug-test/Asks-v0", Asks)

@reward("debug-test/long-v1", timeout_s=0.001, isolation="process")
def long(episode):
    breakpoint()
    return float(len(episode.answer))

@reward("debug-test/rank-v1", level="group", min_members=3)
async def rank(episodes):
    breakpoint()
    return [0.5] * len(episodes)
"""

stops: list[tuple[str, bool]] = []


def stop(*args: Any, **kwargs: Any) -> None:
    """A breakpoint at which somebody thinks for longer than the reward has: where, and whether on the main thread."""
    stops.append((sys._getframe(1).f_code.co_name, threading.current_thread() is threading.main_thread()))
    threading.Event().wait(0.05)


class Interrupted(io.BytesIO):
    """A terminal at which somebody presses Ctrl-C instead of typing."""

    went_on = False

    def read1(self, size: int | None = -1) -> bytes:
        signal.raise_signal(signal.SIGINT)
        self.went_on = True
        return b"words\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: a plug-in is loaded once."""
    folder = tmp_path_factory.mktemp("debug")
    (folder / "asks.py").write_text(PLUGIN)
    tiny_model(folder / "tiny")
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(made)
    monkeypatch.setattr("sys.breakpointhook", stop)
    stops.clear()
    yield made


def debugged(folder: Path, *more: str, rewards: str = '"debug-test/long-v1"', typed: str = "") -> Result:
    (folder / "r.toml").write_text(
        'name = "r"\nmodel = "tiny"\nenvironment = "debug-test/Asks-v0"\nplugins = ["asks.py"]\nmulti_turn_rollouts = true\n'
        f"reward_function = [{rewards}]\n[engine]\nmax_context = 1024\n[rollout]\nstep_timeout_s = 0.01\nepisode_timeout_s = 0.01\n"
    )
    return CliRunner().invoke(app, ["debug", "r.toml", *more], input=typed)


def test_breakpoints_fire_on_the_main_thread_and_may_last(folder: Path) -> None:
    done = debugged(folder, "--say", "one", "--say", "three", "--task", "7")
    assert done.exit_code == 0, done.output
    assert stops == [("step", True), ("step", True), ("long", True)]
    assert "debug-7/0" in done.output and "say something, 7" in done.output
    assert "reward 5" in done.output and "env 0" in done.output


def test_attempts_are_as_many_as_rewards_compare(folder: Path) -> None:
    done = debugged(folder, rewards='"debug-test/rank-v1"')
    assert done.exit_code == 0, done.output
    assert stops == [("step", True)] * 6 + [("rank", True)]
    assert done.output.count("reward 0.5") == 3


def test_what_the_policy_says_can_be_typed(folder: Path) -> None:
    done = debugged(folder, "--ask", typed="hello\nthere you are\n")
    assert done.exit_code == 0, done.output
    assert "turn 2, the policy says" in done.output and "reward 13" in done.output


def test_one_ctrl_c_ends_it_where_words_are_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = Interrupted()
    monkeypatch.setattr("typer.testing.make_input_stream", lambda given, charset: typed)
    done = debugged(folder, "--ask")
    assert (done.exit_code, done.stderr, typed.went_on) == (130, "interrupted\n", False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_input_that_ends_is_an_error_in_a_line(folder: Path) -> None:
    done = debugged(folder, "--ask", typed="hello\n")
    assert done.exit_code == 2
    assert done.stderr == "error: --ask: the input ended before anything was said in turn 2; give the words by --say\n"


def test_a_program_can_read_what_came_of_it(folder: Path) -> None:
    done = debugged(folder, "--json", "--ask", "--task", "7", typed="one\nthree\n")
    (row,) = json.loads(done.stdout.splitlines()[-1])  # the lines before are what was typed, as a terminal shows it
    assert (row["episode"], row["reward"]["total"], row["messages"][-1]["content"]) == ("debug-7/0", 5.0, "three")
    assert done.exit_code == 0 and "turn 2, the policy says" in done.stderr


def test_the_recipe_of_a_run_is_what_ran_and_not_the_file_that_was_given(folder: Path, tmp_path: Path) -> None:
    debugged(folder)
    given = (folder / "r.toml").read_text()
    run = create_run(resolve(load_config(folder / "r.toml", ["environment_args.breaks=true"])), folder / "r.toml", tmp_path / "run")
    assert run.recipe_file.read_text() == given
    done = CliRunner().invoke(app, ["debug", str(run.path), "--trust"])
    assert done.exit_code == 1 and "the gauge is broken" in done.output, done.output


def test_a_failure_says_where_and_is_an_exit_code(folder: Path) -> None:
    done = debugged(folder, "--set", "environment_args.breaks=true")
    assert done.exit_code == 1
    assert "failed: env_error in debug-test/Asks-v0: OSError: the gauge is broken" in done.output
    assert stops == [("step", True)]  # nothing is tried again


def test_what_is_asked_must_make_sense(folder: Path) -> None:
    assert "give one" in debugged(folder, "--ask", "--say", "x").stderr
    assert "--task x: tasks are made from seeds here" in debugged(folder, "--task", "x").stderr


def test_a_task_of_a_file_goes_by_its_id(made: Path) -> None:
    for name in ("train", "held_out"):
        (made / f"{name}.jsonl").write_text(f'{{"id": "of-{name}", "messages": [{{"role": "user", "content": "{name}?"}}]}}\n')
    tasks = {name: str(made / f"{name}.jsonl") for name in ("train", "held_out")}
    run = resolve(config_from_data({"name": "r", "model": str(made / "tiny"), "environment": "burnish/SingleTurn-v0", "tasks": tasks}))
    assert task_named(run, "of-train").prompt[0].text == "train?"
    with pytest.raises(ValueError, match=r"no row of .*train\.jsonl or .*held_out\.jsonl has this id"):
        task_named(run, "of-nobody")
