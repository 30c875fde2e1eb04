"""The run folder: never overwritten, whole after a kill, and honest about what it resumes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from burnish.cluster import without_line
from burnish.recipe.load import config_data, config_from_data
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.recipe.seeds import data_seed, derive_seeds
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult, LedgerRow, read_json_lines
from burnish.run.folder import RunFolder, create_run, open_run, versions

pytestmark = pytest.mark.unit

RECIPE = 'name = "demo"\nmodel = "m"\nenvironment = "a/B-v0"\nseed = 7\n'
WHAT = {"name": "demo", "model": "m", "environment": "a/B-v0", "seed": 7}


@pytest.fixture
def recipe() -> ResolvedRun:
    return resolve(config_from_data(WHAT))


@pytest.fixture
def run(recipe: ResolvedRun, tmp_path: Path) -> RunFolder:
    file = tmp_path / "demo.toml"
    file.write_text(RECIPE)
    return create_run(recipe, file, root=tmp_path / "runs")


def rows(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_json_lines(file)]


def evaluation(phase: str, step: int) -> EvaluationRecord:
    result = EvaluationResult("sampled", "env", 1, 1, 1.0, 0.2, 1.0, 1.0, 1.0, 3.0, {"heldout-1": 1.0})
    return EvaluationRecord(phase=phase, step=step, result=result)


def test_a_new_run_records_what_it_is(run: RunFolder, recipe: ResolvedRun) -> None:
    assert run.path.parent.name == "runs"
    assert run.path.name.startswith("demo-2")
    assert json.loads(run.config_file.read_text()) == recipe.record == config_data(config_from_data(WHAT))
    assert run.recipe_file.read_text() == RECIPE
    assert run.recipe() == recipe
    assert run.seeds() == derive_seeds(7)
    assert json.loads(run.versions_file.read_text())["packages"].keys() >= {"burnish", "ray", "torch", "pydantic"}
    assert run.transcripts.is_dir() and run.checkpoints.is_dir()


def test_a_folder_with_something_in_it_is_refused(recipe: ResolvedRun, run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not empty and a run never overwrites; .* continue it with `burnish run .* --resume`"):
        create_run(recipe, run_dir=run.path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other is not empty and a run never overwrites; give another --run-dir$"):
        create_run(recipe, run_dir=other)
    assert (other / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_be_used(recipe: ResolvedRun, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert create_run(recipe, run_dir=tmp_path / "mine").recipe() == recipe


def test_metrics_are_rows_of_finite_floats(run: RunFolder) -> None:
    run.log_metrics("rft", 3, {"reward_mean": 0.5, "episodes": 8})
    (row,) = rows(run.metrics_file)
    assert row.pop("time") > 1.7e9
    assert row == {"phase": "rft", "step": 3, "reward_mean": 0.5, "episodes": 8.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.5", None])
def test_a_metric_that_is_no_finite_number_is_refused_by_name(run: RunFolder, value: Any) -> None:
    with pytest.raises(ValueError, match=r"metric 'loss' of sft step 2 is .*, not a finite number"):
        run.log_metrics("sft", 2, {"fine": 1.0, "loss": value})
    assert not run.metrics_file.exists()


def test_a_metric_may_not_take_the_place_of_a_rows_own_key(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"metric 'step' of rft step 1: rows have phase, step, time of their own; rename it"):
        run.log_metrics("rft", 1, {"step": 3.0})


def test_rewind_drops_what_a_resumed_run_does_again(run: RunFolder) -> None:
    for phase, step in [("sft", 1), ("sft", 2), ("rft", 1), ("rft", 2), ("rft", 3)]:
        run.log_metrics(phase, step, {"x": step})
        run.log_ledger(LedgerRow(phase=phase, step=step, issued=step, trained=step))
    for phase, step in [("base", 0), ("sft", 2), ("rft", 3)]:
        run.log_evaluation(evaluation(phase, step))
    run.rewind("rft", 1)
    for file in (run.metrics_file, run.ledger_file):
        assert [(row["phase"], row["step"]) for row in rows(file)] == [("sft", 1), ("sft", 2), ("rft", 1)]
    assert [row["phase"] for row in rows(run.evaluations_file)] == ["base", "sft"]
    run.rewind("sft", 1)
    assert [(row["phase"], row["step"]) for row in rows(run.metrics_file)] == [("sft", 1)]
    run.rewind(None)
    assert [rows(file) for file in (run.metrics_file, run.ledger_file, run.evaluations_file)] == [[], [], []]


def test_logging_goes_on_after_a_line_torn_by_a_kill(run: RunFolder) -> None:
    run.log_metrics("rft", 1, {"x": 1})
    with run.metrics_file.open("a") as stream:
        stream.write('{"phase": "rft", "st')
    run.log_metrics("rft", 2, {"x": 2})
    assert [row["step"] for row in rows(run.metrics_file)] == [1, 2]


def test_resume_takes_the_same_config_only(run: RunFolder, recipe: ResolvedRun) -> None:
    assert open_run(run.path, recipe) == run
    changed = resolve(config_from_data({**WHAT, "seed": 8, "rft": {"steps": 3}}))
    differences = r"rft\.steps: 100 -> 3; seed: 7 -> 8; resume with `burnish run"
    with pytest.raises(ValueError, match=rf"cannot resume, the config is another: {differences}"):
        open_run(run.path, changed)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run folder \(it has no config\.json\)"):
        open_run(tmp_path)


def test_every_purpose_has_a_seed_of_its_own() -> None:
    seeds = derive_seeds(7)
    assert seeds["run"] == 7
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert seeds == derive_seeds(7)
    assert not set(seeds.values()) & set(derive_seeds(8).values())


def test_generated_data_stays_inside_the_training_seeds() -> None:
    for run_seed in range(200):
        seeds = derive_seeds(run_seed)
        seed = data_seed(seeds, "sft", (1000, 1100), 40)
        assert seed >= 1000 and seed + 40 <= 1100
    assert data_seed(derive_seeds(0), "sft", (0, 40), 40) == 0


def test_versions_name_the_machine() -> None:
    assert versions()["cpus"] >= 1


def test_one_line_is_left_out_of_stderr_and_the_rest_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    with without_line(b"of no use"):
        os.write(2, b"first\nthis is of no use\n")
        os.system("echo from a child >&2")
        os.write(2, b"last")
    os.write(2, b", and after\n")
    assert capfd.readouterr().err == "first\nfrom a child\nlast, and after\n"
