"""The command line: what it imports, how every error ends, and that commands reach what does their work."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import burnish
from burnish.cli.errors import report
from burnish.cli.main import app
from burnish.cli.models import table_lines
from burnish.cli.signals import end_on_sigterm
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.recipe.plan import Done
from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.store.sole_driver import sole_driver
from burnish.rpc.signals import keep_sigterm
from burnish.run.display import say
from burnish.run.resume import driven

pytestmark = pytest.mark.unit

HEAVY = ("torch", "ray", "vllm", "transformers", "grpc", "numpy", "pydantic", "rich", "gymnasium")
COMMANDS = ("run", "check", "demo", "models", "serve", "serve-verifier", "serve-tools", "rollouts", "evaluate", "env", "rewards")
RECIPE = 'name = "x"\nmodel = "m"\nenvironment = "burnish/Arithmetic-v0"\n'


def burnish_command(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150).stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from burnish.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = python(code)
    assert out.splitlines()[-1] == "HEAVY []"
    for command in COMMANDS:
        assert f"\n  {command} " in out


def test_configs_import_no_torch_ray_or_grpc() -> None:
    code = (
        "import sys, burnish.recipe.config, burnish.run.folder\n"
        "print([n for n in ('torch', 'ray', 'vllm', 'grpc', 'transformers') if n in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_the_public_names_load_lightly_and_completely() -> None:
    code = (
        "import sys\nfrom burnish import reward, tool, Message, load_config, RewardInput, Score\n"
        "print([n for n in ('torch', 'ray', 'vllm', 'grpc', 'transformers') if n in sys.modules])"
    )
    assert python(code).strip() == "[]"
    for name in burnish.__all__:
        assert getattr(burnish, name) is not None
    assert set(burnish.__all__) == set(burnish._HOME)
    assert set(burnish.__all__) <= set(dir(burnish))
    with pytest.raises(AttributeError, match="module 'burnish' has no attribute 'rewrad'"):
        _ = burnish.rewrad


@pytest.mark.parametrize(
    "path",
    [["--help"], *([name, "--help"] for name in COMMANDS), ["models", "new", "--help"], ["models", "import", "--help"]],
    ids=" ".join,
)
def test_every_command_explains_itself(path: list[str]) -> None:
    result = burnish_command(*path)
    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_usage_errors_exit_2_with_a_suggestion() -> None:
    result = burnish_command("rn")
    assert result.exit_code == 2
    assert "did you mean 'run'" in result.stderr
    assert burnish_command("run").exit_code == 2


def test_a_bad_recipe_is_one_line_on_stderr(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(RECIPE + "sed = 3\n")
    result = burnish_command("run", str(file), "--dry-run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {file}: sed: unknown key; did you mean 'seed'?\n"


def test_a_bad_model_leaves_no_run_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    result = burnish_command("run", "r.toml")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: model 'm' is neither a folder nor a model in models/")
    assert not (tmp_path / "runs").exists()


def test_resume_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    result = burnish_command("run", str(tmp_path / "r.toml"), "--resume")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --resume needs the run: `burnish run RUN_FOLDER --resume`")
    result = burnish_command("run", str(tmp_path))
    assert (result.exit_code, "is a folder; give a recipe (*.toml), or --resume" in result.stderr) == (2, True)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The command with a stand-in for planning and for the pipeline; gives what the pipeline was called with, and sets what it raises."""
    seen: dict[str, Any] = {"raises": None}

    def run(recipe: ResolvedRun, run_dir: Path, *, resume: bool, console: Console, plan: Any) -> None:
        with driven(run_dir, recipe, resume, partial(say, console)):
            seen.update(recipe=recipe, run_dir=run_dir, resume=resume)
            if seen["raises"] is not None:
                raise seen["raises"]

    module = types.ModuleType("burnish.run.pipeline")
    setattr(module, "run", run)  # noqa: B010
    monkeypatch.setitem(sys.modules, "burnish.run.pipeline", module)
    monkeypatch.setattr("burnish.recipe.plan.make_plan", lambda recipe, run_dir=None, say=None, **asked: None)
    monkeypatch.setattr("burnish.recipe.plan.print_plan", lambda plan, console: None)
    monkeypatch.setattr("burnish.session.try_parts", lambda recipe, say: say("rehearsed"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    return seen


def test_run_makes_a_folder_and_resume_finds_it(pipeline: dict[str, Any], tmp_path: Path) -> None:
    result = burnish_command("run", "r.toml", "--set", "rft.steps=3", "--run-dir", "here")
    assert result.exit_code == 0, result.stderr
    assert (pipeline["run_dir"], pipeline["resume"], pipeline["recipe"].rft.steps) == (Path("here"), False, 3)
    assert json.loads(Path("here/config.json").read_text())["rft"]["steps"] == 3
    assert burnish_command("run", "r.toml", "--set", "rft.steps=3", "--run-dir", "here").exit_code == 2  # never overwritten

    assert burnish_command("run", "here", "--resume").exit_code == 0
    assert (pipeline["resume"], pipeline["recipe"].rft.steps) == (True, 3)
    other = burnish_command("run", "r.toml", "--resume", "--run-dir", "here", "--set", "seed=9")
    assert other.exit_code == 2
    assert "cannot resume, the config is another: seed: 0 -> 9; resume with" in other.stderr
    assert "rft.steps" not in other.stderr, "more steps are no reason"
    assert json.loads(Path("here/config.json").read_text())["rft"]["steps"] == 3, "a resume that was refused changes nothing"
    more = burnish_command("run", "here", "--resume", "--set", "rft.steps=5", "--set", "limits.stall_s=900.0")
    assert (more.exit_code, pipeline["recipe"].rft.steps) == (0, 5), more.stderr
    assert "resumes with another setting, limits.stall_s: 600.0 -> 900.0\nresumes with another setting, rft.steps: 3 -> 5\n" in more.stdout
    config = json.loads(Path("here/config.json").read_text())
    assert (config["rft"]["steps"], config["limits"]["stall_s"]) == (5, 900.0)


def test_a_run_that_another_process_drives_is_left_as_it_is(pipeline: dict[str, Any]) -> None:
    assert burnish_command("run", "r.toml", "--set", "rft.steps=3", "--run-dir", "here").exit_code == 0
    before = Path("here/config.json").read_text()
    with sole_driver(Path("here"), print):  # as another process would
        refused = burnish_command("run", "here", "--resume", "--set", "rft.steps=5")
    assert refused.exit_code == 2 and "resumes with" not in refused.stdout
    (line,) = refused.stderr.splitlines()  # and no advice to start again
    assert line.startswith(f"error: here is driven by process {os.getpid()} already")
    assert Path("here/config.json").read_text() == before


def test_a_run_that_ends_by_itself_says_where_its_report_is_and_how_to_serve_it(pipeline: dict[str, Any]) -> None:
    done = burnish_command("run", "r.toml", "--run-dir", "here")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "report:       here/report.html",
        "transcripts:  burnish rollouts here --order worst",
        "serve it:     burnish serve here",
    ]


def test_a_dry_run_rehearses_and_starts_no_run(pipeline: dict[str, Any], tmp_path: Path) -> None:
    done = burnish_command("run", "r.toml", "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "rehearsed\n")
    assert "recipe" not in pipeline
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_gives_a_program_the_plan_and_nothing_else(pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.recipe.plan_row.plan_row", lambda plan, said: {"rehearsal": said})
    done = burnish_command("run", "r.toml", "--dry-run", "--json")
    assert (done.exit_code, done.stdout) == (0, '{"rehearsal": ["rehearsed"]}\n')


def test_a_finished_run_says_so_and_starts_nothing(pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert burnish_command("run", "r.toml", "--run-dir", "here").exit_code == 0
    monkeypatch.setattr("burnish.run.launch.is_finished", lambda folder, run: True)
    Path("here/report.html").write_text("")
    pipeline.clear()
    done = burnish_command("run", "here", "--resume")
    assert (done.exit_code, pipeline) == (0, {}), done.output
    finished, _, transcripts, serve = done.stdout.splitlines()
    assert finished.startswith("here is finished: nothing is left to do.")
    assert finished.endswith("`burnish run here --resume --set rft.steps=200`")
    assert serve == "serve it:     burnish serve here" and transcripts.startswith("transcripts: ")


def test_a_dry_run_of_a_finished_run_says_so_and_writes_nothing(pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert burnish_command("run", "r.toml", "--run-dir", "here").exit_code == 0
    monkeypatch.setattr("burnish.run.launch.is_finished", lambda folder, run: True)
    monkeypatch.setattr("burnish.run.launch.behind", lambda path, run: Done("rft", 100, ended=True))
    before = sorted(Path("here").rglob("*"))
    done = burnish_command("run", "here", "--resume", "--dry-run")
    assert (done.exit_code, done.stdout.startswith("here is finished: nothing is left to do."), done.stdout.count("\n")) == (0, True, 1)
    row = json.loads(burnish_command("run", "here", "--resume", "--dry-run", "--json").stdout)
    assert (row["finished"], row["run_folder"], row["phases"], row["done"]) == (True, "here", [], {"phase": "rft", "step": 100})
    assert row["more"] == "burnish run here --resume --set rft.steps=200"
    assert sorted(Path("here").rglob("*")) == before


def test_a_start_that_cannot_succeed_gives_no_way_to_resume(pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline["raises"] = ValueError("success: the episode has no reward part 'x'")
    said = burnish_command("run", "r.toml", "--run-dir", "here").stderr.splitlines()
    assert said == [
        "error: success: the episode has no reward part 'x'",
        "nothing was trained; put it right and start again. What there is of this start is in here",
    ]
    monkeypatch.setattr("burnish.run.launch.latest", lambda path: "rft-20")
    pipeline["raises"] = ValueError("the verifier is gone")
    said = burnish_command("run", "here", "--resume").stderr.splitlines()
    assert said[1:] == ["the run is in here; continue it with `burnish run here --resume`"]


def test_ctrl_c_says_how_to_resume(pipeline: dict[str, Any]) -> None:
    pipeline["raises"] = KeyboardInterrupt()
    result = burnish_command("run", "r.toml", "--run-dir", "here")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\nthe run is in here; continue it with `burnish run here --resume`\n"


def test_sigterm_ends_a_run_like_ctrl_c_with_a_code_of_its_own(pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.cli.signals._received", set())
    before = signal.getsignal(signal.SIGTERM)
    end_on_sigterm()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    pipeline["raises"] = KeyboardInterrupt()  # Ray raises a plain one where the handler's was raised inside of it
    result = burnish_command("run", "r.toml", "--run-dir", "here")
    assert result.exit_code == 143
    assert result.stderr == "terminated\nthe run is in here; continue it with `burnish run here --resume`\n"


def test_a_library_that_takes_sigterm_gives_it_back() -> None:
    handler, other = (lambda *_: None), (lambda *_: None)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with keep_sigterm():
            signal.signal(signal.SIGTERM, other)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_failed_run_names_the_culprit_and_how_to_resume(pipeline: dict[str, Any]) -> None:
    pipeline["raises"] = EpisodeFailure(Failure(FailureKind.VERIFIER_TIMEOUT, "verdicts@h:1", "no answer within 5 s"))
    result = burnish_command("run", "r.toml", "--run-dir", "here")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "failed: verifier_timeout in verdicts@h:1: no answer within 5 s",
        "the run is in here; continue it with `burnish run here --resume`",
    ]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("seed is odd; choose another"), 2, "error: seed is odd; choose another\n"),
        (FileNotFoundError(2, "No such file or directory", "a.toml"), 2, "error: No such file or directory: a.toml\n"),
        (OSError(28, "No space left on device"), 1, "failed: No space left on device\n"),
        (
            OSError(28, "No space left on device", "model/tokenizer.json", None, "RUN/tokenizer.json"),
            1,
            "failed: No space left on device: RUN/tokenizer.json\n",
        ),
        (TimeoutError("engine-0 did not answer within 60 s"), 1, "failed: engine-0 did not answer within 60 s\n"),
        (RuntimeError("the run stopped"), 1, "failed: the run stopped\n"),
        (
            TypeError("int + str"),
            1,
            "failed: TypeError: int + str\nThis is a fault in burnish; `burnish --debug …` shows where\n",
        ),
    ],
)
def test_errors_become_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    monkeypatch.delenv("BURNISH_DEBUG", raising=False)
    assert report(error) == code
    assert capsys.readouterr().err == text


def test_what_a_ray_worker_raised_is_what_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    class RayTaskError(Exception):
        cause = ValueError("no such tool")

    RayTaskError.__module__ = "ray.exceptions"
    assert report(RayTaskError("a page of traceback")) == 2
    assert capsys.readouterr().err == "error: no such tool\n"


def test_tracebacks_only_when_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as caught:
        raise ValueError("x")
    monkeypatch.setenv("BURNISH_DEBUG", "1")
    assert report(caught.value) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith("error: x\n")
    monkeypatch.setenv("BURNISH_DEBUG", "0")
    assert report(caught.value) == 2
    assert capsys.readouterr().err == "error: x\n"


def test_rewards_and_environments_can_be_listed_and_checked(tmp_path: Path) -> None:
    assert "burnish/inspection-cost-v1" in burnish_command("rewards", "list").stdout
    assert "burnish/Arithmetic-v0" in burnish_command("env", "list").stdout
    assert "-0.3, -0.3" in burnish_command("rewards", "check", "burnish/inspection-cost-v1").stdout
    plugin = tmp_path / "random_reward.py"
    plugin.write_text(
        "import random\nfrom burnish import reward\n@reward('cli-test/dice-v1')\ndef dice(episode):\n    return random.random()\n"
    )
    result = burnish_command("rewards", "check", "cli-test/dice-v1", "--plugin", str(plugin))
    assert result.exit_code == 2
    assert "a reward must not vary between calls" in result.stderr


def test_a_new_model_takes_one_kind_of_text_or_none(tmp_path: Path) -> None:
    result = burnish_command("models", "new", "x", "--text", "a.txt", "--generate", "a:b")
    assert result.exit_code == 2
    assert result.stderr == "error: a tokenizer is made of one kind of text: give either --text FILE or --generate module:function\n"
    result = burnish_command("models", "new", "tiny", "--models-dir", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "tiny" / "tokenizer.json").is_file()


def test_an_error_neither_steers_the_terminal_nor_shows_a_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "the service answers \x1b]0;owned\x07\u202e from https://me:s3cret@h/x?token=s3cret"
    for debug in ("0", "1"):
        monkeypatch.setenv("BURNISH_DEBUG", debug)
        report(ValueError(said))
        shown = capsys.readouterr().err
        assert "\\x1b]0;owned\\x07\\u202e from https://…@h/x?token=…" in shown
        assert "s3cret" not in shown and "\x1b" not in shown


def test_what_a_run_and_a_table_say_steers_no_terminal() -> None:
    out = io.StringIO()
    say(Console(file=out), "best constant \x1b[2Jpass")
    assert out.getvalue() == "best constant \\x1b[2Jpass\n"
    assert table_lines(("name",), [["nano\x1b[2J\nother"]])[1] == "nano\\x1b[2J\\nother"


@pytest.mark.parametrize("option", ["--samples 2", "--temperature 0.5", "--items 3", "--threads 2", "--out o", "--plugin p.py", "--json"])
def test_evaluate_names_an_option_that_would_have_no_effect(option: str) -> None:
    name = option.split()[0]
    if name != "--json":
        result = burnish_command("evaluate", "--compare", "a", "b", *option.split())
        assert (result.exit_code, result.stderr.startswith(f"error: {name} has no effect on two folders of results")) == (2, True), (
            result.stderr
        )
    if name not in ("--out", "--plugin"):
        result = burnish_command("evaluate", "small", "recipe.toml", *option.split())
        assert (result.exit_code, result.stderr.startswith(f"error: {name} has no effect beside a RECIPE")) == (2, True), result.stderr
