"""Whoever reads the output of a command may leave, as `burnish … | head` does: what the command does ends as it would have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model

from burnish.cli.main import app
from burnish.run.display import StepBar, new_console, say

pytestmark = pytest.mark.unit


@contextmanager
def unread(stderr: bool = False) -> Iterator[None]:
    """Nobody reads stdout, or stderr."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as out, redirect_stderr(out) if stderr else redirect_stdout(out):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unread")
    arithmetic = recipe(tiny_model(folder / "tiny"), "burnish/Arithmetic-v0")
    return stored(arithmetic, played(arithmetic, seeded(2), ["7"]), folder / "run")


def code_of(*arguments: str | Path) -> object:
    with unread(), pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_transcripts_are_printed_no_further(run: Path, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[object] = []

    def render(transcript: object, tools: bool) -> str:
        rendered.append(transcript)
        return "text"

    monkeypatch.setattr("burnish.inspector.terminal.render", render)
    assert code_of("rollouts", run, *more) in (0, None)
    assert len(rendered) == (0 if more else 1)  # of four


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_the_command_itself_says(option: str) -> None:
    assert code_of(option) in (0, None)


def test_a_failed_episode_is_an_exit_code_all_the_same(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    reward = 'from burnish import reward\n@reward("unread/never-v1")\ndef never(episode):\n    raise OSError("no")\n'
    (tmp_path / "never.py").write_text(reward)
    file.write_text(
        f'name = "r"\nmodel = "{run.parent / "tiny"}"\nenvironment = "burnish/Arithmetic-v0"\nplugins = ["{tmp_path / "never.py"}"]\n'
        'reward_function = "unread/never-v1"\n'
    )
    assert code_of("debug", file) == 1


@pytest.mark.parametrize("stderr", [False, True])
def test_a_run_goes_on(stderr: bool) -> None:
    with unread(stderr):
        console = new_console(stderr=stderr)
        say(console, "the plan")
        with StepBar(console, "RFT", 2) as bar:
            bar.advance("reward 0.71")
            bar.advance("reward 0.72")
        say(console, "the report")
    assert console.quiet
