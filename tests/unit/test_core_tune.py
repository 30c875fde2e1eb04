"""`burnish tune` without Ray: what a space says, what is refused before a trial starts, and a trial that is followed, ended and blamed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.one_step import make_policy

from burnish.cli.tune import page
from burnish.recipe.overrides import parse_override
from burnish.run.space import Range, combinations, corners, overrides_of, read_space
from burnish.run.trials import Trial, TrialFailed, TrialPlan, TrialProgress, wait_until_ended
from burnish.run.tuning import Search, Tried, Tuned, best_of, number_of, tune, variants, why_it_failed

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tune.md"


def test_a_space_is_read_from_keys_and_files_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text("[rft]\nlr = { low = 1e-5, high = 3e-4, log = true }\ngroup_size = [4, 8]\nobjective.kl_coef = [0.0, 0.1]\n")
    space = read_space([str(file), "rft.group_size={low=4, high=16}", "seed=[1, 2, 3]"])
    assert space == {
        "rft.lr": Range(1e-5, 3e-4, log=True),
        "rft.group_size": Range(4, 16),
        "rft.objective.kl_coef": (0.0, 0.1),
        "seed": (1, 2, 3),
    }
    assert Range(4, 16).whole and not Range(4.0, 16).whole
    assert combinations(space) == 6
    assert list(corners({"a": Range(1, 9), "b": ("x", "y")})) == [{"a": 1, "b": "x"}, {"a": 9, "b": "x"}, {"a": 1, "b": "y"}]


def test_a_key_with_many_values_is_no_file() -> None:
    (values,) = read_space([f"seed={list(range(1000))}"]).values()
    assert values == tuple(range(1000))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("rft.lr", "is no file, and not KEY="),
        ("rft.lr=1e-5", "must be a list of values, or"),
        ("rft.lr={low=1e-5}", "a range has low, high"),
        ("rft.lr={low=1e-5, high=1e-4, step=2}", "not step"),
        ("rft.lr={low=2.0, high=1.0}", "low the smaller one"),
        ("rft.lr={low=true, high=1.0}", "must be numbers"),
        ("rft.lr={low=0.0, high=1.0, log=true}", "begins above 0"),
        ("rft.lr=[]", "must be a list of values"),
        ("rft.objective=[{}]", "not a table"),
    ],
)
def test_what_is_no_space_is_refused(given: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_space([given])


def test_the_overrides_of_a_trial_are_what_set_reads() -> None:
    values = {"rft.lr": 3.00000004e-5, "rft.rollouts": "async", "rft.group_size": 8, "environment_args.operations": ["+", "-"], "x": True}
    overrides = overrides_of(values)
    assert overrides[0] == "rft.lr=3e-05"
    assert [parse_override(one).value for one in overrides] == [3e-5, "async", 8, ["+", "-"], True]


def run_by(tmp_path: Path, code: str, metric: str = "loss") -> Trial:
    """A trial whose program does what `code` says with `rows`, the file of its metrics."""
    program = tmp_path / "program.py"
    head = """
        import json, pathlib, signal, sys, time
        assert sys.argv[2:4] == ["run", "recipe.toml"], sys.argv
        folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
        folder.mkdir()
        def row(step, phase="sft", **values):
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"phase": phase, "step": step, "time": 1.0, **values}) + "\\n")
    """
    program.write_text(textwrap.dedent(head) + textwrap.dedent(code))
    plan = TrialPlan("recipe.toml", ("--set", "seed=3"), str(tmp_path), "sft", metric, str(tmp_path), (sys.executable, str(program)))
    return Trial(plan, 1, ["sft.lr=0.001"])


def test_a_trial_is_followed_step_by_step_and_its_score_is_the_mean_of_three(tmp_path: Path) -> None:
    code = """
        assert sys.argv[4:8] == ["--set", "seed=3", "--set", "sft.lr=0.001"]
        row(1, "cpt", loss=9.0)
        for step, loss in enumerate((4.0, 2.0, 3.0, 1.0), start=1):
            row(step, **({} if step == 3 else {"loss": loss}))
    """
    trial = run_by(tmp_path, code)
    seen = [trial.next(60.0) for _ in range(4)]
    assert seen == [
        TrialProgress(1, 4.0, 4.0),
        TrialProgress(2, 2.0, 3.0),
        TrialProgress(4, 1.0, 7 / 3),
        TrialProgress(4, 1.0, 7 / 3, ended=True),
    ]


def test_a_trial_without_news_says_nothing_and_is_ended_as_by_ctrl_c(tmp_path: Path) -> None:
    code = """
        def end(number, frame):
            (folder / "saved").write_text("clean")
            sys.exit(143)
        signal.signal(signal.SIGTERM, end)
        row(1, loss=1.0)
        while True: time.sleep(0.1)
    """
    trial = run_by(tmp_path, code)
    assert trial.next(60.0) == TrialProgress(1, 1.0, 1.0) and trial.next(0.0) is None
    assert wait_until_ended([trial.log, tmp_path / "none.log"], 0.0) == [trial.log]
    trial.end()
    assert wait_until_ended([trial.log], 60.0) == []
    assert (trial.run_dir / "saved").read_text() == "clean"
    trial.end()  # harmless


@pytest.mark.parametrize(
    ("code", "metric", "problem"),
    [
        ("row(1, loss=1.0); print('starting'); print('error: sft.lr: too high'); sys.exit(2)", "loss", r"^error: sft\.lr: too high \(exit"),
        ("row(1, loss=1.0)", "success", "no step of sft has a metric 'success'; it has loss"),
    ],
)  # fmt: skip
def test_a_run_that_ends_badly_fails_its_trial_with_the_reason(tmp_path: Path, code: str, metric: str, problem: str) -> None:
    trial = run_by(tmp_path, code, metric)
    with pytest.raises(TrialFailed, match=problem):
        for _ in range(3):
            trial.next(60.0)


def test_why_a_trial_failed_is_the_last_line_that_ray_keeps_of_it(tmp_path: Path) -> None:
    """As Ray writes it: when it happened, the traceback, and the error with the name of its class."""
    file = tmp_path / "error.txt"
    file.write_text(
        f"Failure # 1 (occurred at 2026)\nray::RecipeTrial.train()\n  File ...\n{TrialFailed.__module__}.TrialFailed: error: too high\n"
    )
    assert why_it_failed(str(file)) == "error: too high"
    assert why_it_failed(None) == why_it_failed(str(tmp_path / "none")) == ""


def test_a_trial_does_not_outlive_who_started_it() -> None:
    """Of a parent that is gone already: it ends before it is the command."""
    command = [sys.executable, "-P", "-m", "burnish.cli.trial", "1", "recipe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_the_best_is_one_that_ran_to_its_end() -> None:
    trials = [Tried(1, (), "finished", 8, 0.4), Tried(2, (), "pruned", 2, 0.9), Tried(3, (), "finished", 8, 0.6), Tried(4, (), "failed")]
    assert best_of(trials, "max") is trials[2] and best_of(trials, "min") is trials[0]
    assert best_of(trials[1:2], "max") is trials[1] and best_of(trials[3:], "max") is None
    assert number_of("4f2a1_00003") == 4
    found = Tuned(Path("runs/t"), tuple(trials), "success", "max", trials[2], "burnish run recipe.toml --set 'rft.lr=3e-05'")
    lines = list(page(found))
    assert [line.split()[0] for line in lines[2:6]] == ["3", "1", "2", "4"]
    assert lines[-1] == "  burnish run recipe.toml --set 'rft.lr=3e-05'" and "best: trial 3, runs/t/trial-3" in lines[-2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    model, file = make_policy(tmp_path / "policy"), tmp_path / "recipe.toml"
    data = {"name": "t", "model": str(model), "environment": "burnish/Arithmetic-v0", "platform": "cpu"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items()]
    file.write_text("\n".join([*lines, "[rft]", "steps = 8", "lr = 1e-4"]))
    return file


@pytest.mark.parametrize(
    ("text", "problem"),
    [(f"a = {'[' * 5000}{']' * 5000}", "space.toml: is no TOML"), (f"[{'.'.join('a' * 5000)}]\nb = 1", "space.toml: is no space")],
    ids=["lists", "tables"],
)
def test_a_space_that_is_nested_without_end_is_refused_with_its_name(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(problem)):
        read_space([str(tmp_path / "space.toml")])


@pytest.mark.parametrize(
    ("space", "search", "problem"),
    [
        ("rft.lr={low=1e-5, high=2.0}", Search(), "rft.lr"),
        ("rft.grop_size=[4]", Search(), "--space rft.grop_size=4: "),
        ("sft.lr=[1e-5]", Search(), r"--space sft.lr: .*\.toml has no \[sft\]"),
        ("rft.steps=[4, 8]", Search(), "varies the steps of rft"),
        ("rft.lr=[1e-5]", Search(phase="sft"), "--phase sft: t has rft"),
        ("rft.lr=[1e-5]", Search(grace=8), "--grace 8: the phase has 8 steps"),
    ],
)
def test_what_cannot_be_is_refused_before_a_trial_starts(recipe: Path, tmp_path: Path, space: str, search: Search, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        tune(recipe, read_space([space]), search, Console(quiet=True), run_dir=tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_docs_the_spaces_of_the_page_are_spaces(recipe: Path, tmp_path: Path) -> None:
    text = DOCS.read_text()
    (table,) = [block for block in text.split("```toml\n")[1:] if block.startswith("[rft]")]
    file = tmp_path / "space.toml"
    file.write_text(table.partition("```")[0])
    given: dict[str, Any] = tomllib.loads(file.read_text())
    assert read_space([str(file)])["rft.group_size"] == tuple(given["rft"]["group_size"])
    assert read_space([str(file)])["rft.lr"] == read_space(["rft.lr={low=1e-5, high=3e-4, log=true}"])["rft.lr"]
    assert '--space "rft.lr={low=1e-5, high=3e-4, log=true}"' in text


def test_every_combination_of_listed_values_has_values_of_its_own_in_the_ranges(tmp_path: Path) -> None:
    from ray import tune as ray_tune
    from ray.tune.experiment import Experiment

    class Nothing(ray_tune.Trainable):  # type: ignore[misc]
        pass

    space = {"a": ray_tune.grid_search([1, 2]), "lr": ray_tune.uniform(0, 1)}
    asked = variants(Search(trials=2))
    asked.max_concurrent = 0  # all at once
    asked.add_configurations([Experiment("it", Nothing, config=space, num_samples=2, storage_path=str(tmp_path))])
    drawn = [asked.next_trial().config for _ in range(4)]
    assert [one["a"] for one in drawn] == [1, 2, 1, 2]
    assert len({one["lr"] for one in drawn}) == 4
