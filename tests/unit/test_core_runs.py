"""The run folder: never overwritten, whole after a kill, and honest about what it resumes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.cluster import without_line
from burnish.envs.types import Episode, Reward, Task
from burnish.recipe.load import config_data, config_from_data, load_config
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.recipe.seeds import data_seed, derive_seeds
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.json_lines import JsonLines, read_json_lines
from burnish.rollout.store.moments import Moment, moments
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult, LedgerRow, Mode
from burnish.rollout.store.transcripts import Transcript, TranscriptWriter, read_transcripts, transcript_of
from burnish.run.folder import RunFolder, create_run, open_run, versions
from burnish.run.resume import changes, is_finished
from burnish.trainer.models.checkpoints import CheckpointRecord

pytestmark = pytest.mark.unit


def test_before_the_first_run_there_are_none(tmp_path: Path) -> None:
    """Nothing is wrong yet, in a folder or without one."""
    for folder in (tmp_path, tmp_path / "runs"):
        found = CliRunner().invoke(app, ["runs", "list", str(folder)])
        assert found.exit_code == 0, found.output
        where = f"in {folder}" if folder.is_dir() else f"here: there is no folder {folder}"
        assert found.stdout == f"no runs yet {where}; `burnish run RECIPE` makes runs, in runs/ unless told otherwise\n"
        assert CliRunner().invoke(app, ["runs", "list", str(folder), "--json"]).stdout == "[]\n"
    (tmp_path / "file").touch()
    assert CliRunner().invoke(app, ["runs", "list", str(tmp_path / "file")]).exit_code == 2


def test_a_folder_that_may_not_be_looked_into_is_named_and_may_be_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lost+found", "listed-by-name", "no-run"):
        (tmp_path / name).mkdir()
    for name in ("config.json", "seeds.json"):
        (tmp_path / "listed-by-name" / name).write_text(json.dumps(WHAT) if name == "config.json" else "{}")
    real = os.access

    def access(path: str | Path, how: int) -> bool:  # the first is of mode 0700, the others of 0711, and of another user
        refused = os.R_OK | os.X_OK if Path(path).name == "lost+found" else os.R_OK
        return (Path(path).parent != tmp_path or not how & refused) and real(path, how)

    monkeypatch.setattr("os.access", access)
    found = CliRunner().invoke(app, ["runs", "list", str(tmp_path)])
    assert (found.exit_code, found.stderr) == (0, "lost+found cannot be read: permission denied\n")
    assert found.stdout.count("listed-by-name") == 1
    one, other = json.loads(CliRunner().invoke(app, ["runs", "list", str(tmp_path), "--json"]).stdout)
    assert one["path"] == str(tmp_path / "listed-by-name")
    assert other == {"run": "lost+found", "path": str(tmp_path / "lost+found"), "error": "permission denied"}


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
    assert json.loads(run.versions_file.read_text())["given"] == {"cpus": recipe.placement.cpus or os.cpu_count(), "gpus": 0.0}
    assert run.checkpoints.is_dir()


def test_of_a_cluster_that_it_joins_a_run_knows_its_gpus_alone(recipe: ResolvedRun, tmp_path: Path) -> None:
    placed = dataclasses.replace(recipe.placement, ray_address="auto", learner_gpus=1.0, engine_gpus=0.5)
    run = create_run(dataclasses.replace(recipe, placement=placed), run_dir=tmp_path / "joined")
    assert json.loads(run.versions_file.read_text())["given"] == {"cpus": None, "gpus": 1.0 + 0.5 * placed.engines}


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
    run.report.write_text("what became of step 3")
    run.rewind(("cpt", "sft", "rft"), "rft", 1)
    assert not run.report.exists()
    for file in (run.metrics_file, run.ledger_file):
        assert [(row["phase"], row["step"]) for row in rows(file)] == [("sft", 1), ("sft", 2), ("rft", 1)]
    assert [row["phase"] for row in rows(run.evaluations_file)] == ["base", "sft"]
    run.rewind(("cpt", "sft", "rft"), "sft", 1)
    assert [(row["phase"], row["step"]) for row in rows(run.metrics_file)] == [("sft", 1)]
    run.rewind(("cpt", "sft", "rft"), "base")
    assert [rows(file) for file in (run.metrics_file, run.ledger_file)] == [[], []]
    assert [row["phase"] for row in rows(run.evaluations_file)] == ["base"], "the model that training begins with is the same again"


def test_logging_goes_on_after_a_line_torn_by_a_kill(run: RunFolder) -> None:
    run.log_metrics("rft", 1, {"x": 1})
    with run.metrics_file.open("a") as stream:
        stream.write('{"phase": "rft", "st')
    run.log_metrics("rft", 2, {"x": 2})
    assert [row["step"] for row in rows(run.metrics_file)] == [1, 2]


def stored(phase: str, step: int, split: Any, mode: Any = "sampled") -> Transcript:
    return transcript_of(
        Episode(Task(f"{split}-{step}", 1), 0, (), (), Reward(1.0)), run="r", phase=phase, step=step, split=split, mode=mode
    )


def test_rewind_drops_the_transcripts_of_what_is_done_again(run: RunFolder) -> None:
    run.log_evaluation(evaluation("base", 0))
    run.log_evaluation(evaluation("sft", 2))
    kept = [stored("base", 0, "heldout"), stored("sft", 2, "heldout"), stored("rft", 1, "train")]
    broken_off = [stored("base", 0, "heldout", "greedy"), stored("sft", 2, "heldout", "greedy")]
    with TranscriptWriter(run.transcripts / "episodes.jsonl") as writer:
        for transcript in (*kept, *broken_off, stored("rft", 2, "train"), stored("rft", 2, "heldout")):
            writer.write(transcript)
    with (run.transcripts / "episodes.jsonl").open("a") as file:
        file.write('{"schema": 1, "ru')  # a kill in the middle of a line
    run.rewind(("cpt", "sft", "rft"), "rft", 1)
    assert list(read_transcripts(run.transcripts)) == kept
    assert [file.name for file in run.transcripts.iterdir()] == ["episodes.jsonl"]
    run.rewind(("cpt", "sft", "rft"), "base")
    assert list(read_transcripts(run.transcripts)) == kept[:1]


def test_rewind_takes_rows_that_the_store_has_since_and_those_of_what_is_done_again(run: RunFolder) -> None:
    """A kill came between the file of step 1 and the end of its rows, and before the file of step 2 was whole."""
    one, two = (Moment("rft", step, "train", "sampled") for step in (1, 2))
    tried = [Episode(Task("t", 1), 0, (), (), Reward(1.0))]
    with EpisodeStore(run.episodes, "r") as store:
        store.put(one, tried)
    (run.episodes / two.draft).write_bytes(b"PAR1 no")
    for moment in (one, two):
        with TranscriptWriter(run.transcripts / moment.transcripts) as writer:
            writer.write(transcript_of(tried[0], run="r", phase="rft", step=moment.step))
    run.rewind(("cpt", "sft", "rft"), "rft", 1)
    assert list(run.transcripts.iterdir()) == [] and [file.name for file in run.episodes.iterdir()] == [one.file]


def test_rewind_drops_the_stored_episodes_of_what_is_done_again(run: RunFolder) -> None:
    """An episode that a resumed run plays again is stored once: what lay after the checkpoint goes, evaluations that count stay."""
    run.log_evaluation(evaluation("sft", 2))
    kept = [Moment("rft", 1, "train", "sampled"), Moment("sft", 2, "heldout", "sampled")]
    again = [Moment("rft", 2, "train", "sampled"), Moment("rft", 2, "heldout", "sampled"), Moment("sft", 2, "heldout", "greedy")]
    with EpisodeStore(run.episodes, "r") as store:
        for moment in (*kept, *again):
            store.put(moment, [Episode(Task("t", 1), 0, (), (), Reward(1.0))])
    run.rewind(("cpt", "sft", "rft"), "rft", 1)
    assert [moment for _, moment in moments(run.episodes)] == kept


def test_resume_takes_the_same_config_only(run: RunFolder, recipe: ResolvedRun) -> None:
    assert open_run(run.path, recipe) == run
    changed = resolve(config_from_data({**WHAT, "seed": 8, "rft": {"lr": 3e-5}}))
    differences = r"rft\.lr: null -> 3e-05; seed: 7 -> 8; resume with `burnish run"
    for check in (changes, open_run):
        with pytest.raises(ValueError, match=rf"cannot resume, the config is another: {differences}"):
            check(run.path, changed)


def test_a_setting_that_was_added_since_has_its_default_in_an_older_run(run: RunFolder, recipe: ResolvedRun) -> None:
    older = json.loads(run.config_file.read_text())
    del older["resources"]["trusted_network"], older["limits"]["restart_window_s"], older["tracking"]
    run.config_file.write_text(json.dumps(older))
    assert changes(run.path, recipe) == [] and open_run(run.path, recipe) == run
    said = [str(change) for change in changes(run.path, resolve(config_from_data({**WHAT, "limits": {"restart_window_s": 7.0}})))]
    assert said == ["limits.restart_window_s: 3600.0 -> 7.0"]
    with pytest.raises(ValueError, match=r"the config is another: resources\.env_runners: 1 -> 2; resume with"):
        changes(run.path, resolve(config_from_data({**WHAT, "resources": {"env_runners": 2}})))


@pytest.mark.parametrize("sends", [{}, {"weight_deltas": True, "whole_weights_every": 5}])
def test_a_run_with_adapters_that_began_before_they_could_go_alone_resumes_as_it_sent_them(tmp_path: Path, sends: dict[str, Any]) -> None:
    tables = {"learner": {"lora": {"rank": 4}}, "resources": {"ray_address": "auto"}}
    began = resolve(config_from_data({**WHAT, **tables, "engine": {**sends, "adapters": "merged"}}))
    run = create_run(began, root=tmp_path)
    record = json.loads(run.config_file.read_text())
    del record["engine"]["adapters"]
    run.config_file.write_text(json.dumps(record))
    resumed = resolve(load_config(run.path))
    assert resumed.engine.adapters == "merged" and changes(run.path, resumed) == []
    if not sends:
        alone = resolve(config_from_data({**WHAT, **tables}))
        with pytest.raises(ValueError, match=r'cannot resume, the config is another: engine\.adapters: "merged" -> null'):
            changes(run.path, alone)
        assert resolve(load_config(create_run(alone, run_dir=tmp_path / "alone").path)).engine.adapters is None


@pytest.mark.parametrize("listed", [False, True])
def test_a_run_whose_record_has_bounds_that_cannot_act_is_read_and_resumes_without_them(tmp_path: Path, listed: bool) -> None:
    rft = {"steps": 2, "objective": {"advantage": "gae"}, "critic": {"lr": 1e-5}}
    phases = {"phases": [{"kind": "rft", **rft}], "rft": None} if listed else {"rft": rft}
    recipe = resolve(config_from_data({key: value for key, value in {**WHAT, **phases}.items() if value is not None}))
    run = create_run(recipe, root=tmp_path)
    record = json.loads(run.config_file.read_text())
    table = record["phases"][0] if listed else record["rft"]
    assert table["critic"]["clip"] is None and table["minibatches"] == 1
    table["critic"]["clip"], table["objective"]["loss_args"] = 0.2, {"clip_high": 0.28, "clip_low": 1.5}
    run.config_file.write_text(json.dumps(record))
    resumed = resolve(load_config(run.path))
    assert changes(run.path, resumed) == [] and resumed.rft is not None and resumed.rft.critic is not None
    assert (resumed.rft.critic.clip, resumed.rft.objective.loss_args) == (None, {"clip_low": 1.0})


def test_a_run_of_another_burnish_is_refused_by_what_it_says(run: RunFolder, recipe: ResolvedRun) -> None:
    newer = json.loads(run.config_file.read_text())
    newer["resources"]["wings"] = 2
    run.config_file.write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=r"config\.json: resources\.wings: unknown key"):
        changes(run.path, recipe)


SFT = {"steps": 4, "lr": 1e-4, "schedule": "constant", "generate": "a.b:c", "count": 9}


def saved(run: RunFolder, phase: str, step: int, ended: str = "", weights_of: int | None = None) -> None:
    """A checkpoint, as far as a resume's settings look at it."""
    record = CheckpointRecord(phase=phase, step=step, ended=ended, created_at=datetime.now(UTC), weights_of=weights_of)
    record.trainer_state(run.path).mkdir(parents=True)
    with JsonLines(run.path / "checkpoints.jsonl") as lines:
        lines.append(record.model_dump(mode="json"))


def said_of(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], at: tuple[str, int] | None, ended: str = "") -> list[str]:
    run = create_run(resolve(config_from_data({**WHAT, **before})), run_dir=tmp_path / "run")
    if at is not None:
        saved(run, *at, ended)
    return [str(change) for change in changes(run.path, resolve(config_from_data({**WHAT, **after})))]


@pytest.mark.parametrize("at", [None, ("sft", 4), ("rft", 2), ("rft", 3)])
def test_a_run_may_resume_with_more_steps_and_other_limits(tmp_path: Path, at: tuple[str, int] | None) -> None:
    before = {"sft": SFT, "rft": {"steps": 3}}
    after = {"sft": SFT, "rft": {"steps": 8}, "limits": {"stall_s": 900.0}, "keep_checkpoints": 4, "episodes": {"keep": 9}}
    expected = ["episodes.keep: null -> 9", "keep_checkpoints: 2 -> 4", "limits.stall_s: 600.0 -> 900.0", "rft.steps: 3 -> 8"]
    assert said_of(tmp_path, before, after, at) == expected


def test_a_supervised_phase_under_way_may_go_on_for_longer(tmp_path: Path) -> None:
    assert said_of(tmp_path, {"sft": SFT}, {"sft": {**SFT, "steps": 6}}, ("sft", 4)) == ["sft.steps: 4 -> 6"]


def test_a_phase_that_went_back_to_its_best_weights_has_no_steps_after_them(tmp_path: Path) -> None:
    saved(create_run(resolve(config_from_data({**WHAT, "sft": SFT})), run_dir=tmp_path / "run"), "sft", 4, weights_of=3)
    with pytest.raises(ValueError, match=r"cannot resume.*it ended with the weights of step 3, the best of it"):
        changes(tmp_path / "run", resolve(config_from_data({**WHAT, "sft": {**SFT, "steps": 6}})))


@pytest.mark.parametrize(
    ("before", "after", "at", "ended", "why"),
    [
        ({"rft": {"steps": 5}}, {"rft": {"steps": 3}}, ("rft", 2), "", r"the config is another: rft\.steps: 5 -> 3"),
        (
            {"sft": SFT, "rft": {}},
            {"sft": {**SFT, "steps": 6}, "rft": {}},
            ("rft", 1),
            "",
            r"sft\.steps: 4 -> 6: sft has ended, and rft went on",
        ),
        (
            {"rft": {"steps": 5, "schedule": "cosine"}},
            {"rft": {"steps": 6, "schedule": "cosine"}},
            ("rft", 2),
            "",
            "a cosine schedule that was",
        ),
        ({"sft": {**SFT, "count": None}}, {"sft": {**SFT, "count": None, "steps": 6}}, ("sft", 2), "", "generated for its steps"),
        ({"rft": {"steps": 9}}, {"rft": {"steps": 12}}, ("rft", 7), "max_tokens", "it ended early, at step 7: max_tokens"),
    ],
)
def test_more_steps_that_cannot_be_are_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], at: tuple[str, int], ended: str, why: str
) -> None:
    with pytest.raises(ValueError, match=rf"cannot resume.*{why}"):
        said_of(tmp_path, before, after, at, ended)


@pytest.mark.parametrize(
    ("at", "ended", "evaluated", "after", "finished"),
    [
        (None, "", (), True, False),
        (("rft", 2), "", (), True, False),
        (("rft", 3), "", (), True, False),  # its evaluations were broken off
        (("rft", 3), "", ("sampled",), True, False),
        (("rft", 3), "", ("sampled", "greedy"), True, True),
        (("rft", 3), "", (), False, True),
        (("rft", 2), "max_tokens", ("sampled", "greedy"), True, True),  # ended early
        (("sft", 4), "", ("sampled", "greedy"), True, False),
    ],
)
def test_a_run_is_finished_when_its_last_phase_is_and_was_measured(
    tmp_path: Path, at: tuple[str, int] | None, ended: str, evaluated: tuple[Mode, ...], after: bool, finished: bool
) -> None:
    given = {**WHAT, "sft": SFT, "rft": {"steps": 3}, "evaluation": {"after": after}}
    run = create_run(recipe := resolve(config_from_data(given)), run_dir=tmp_path / "run")
    if at is not None:
        saved(run, *at, ended)
        for mode in evaluated:
            result = dataclasses.replace(evaluation(*at).result, mode=mode)
            run.log_evaluation(EvaluationRecord(phase=at[0], step=at[1], result=result))
    assert is_finished(run, recipe) == finished


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
