"""Skills that a run must keep: the gate, by hand; which checkpoint is promoted; what a recipe may say; what a report shows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.unit.one_step import make_policy
from tests.unit.test_suites import answers, fleet_over, table, texts

from burnish.envs.types import Episode, Message, Reward, Task, Trajectory
from burnish.inspector.report import write_report
from burnish.inspector.runs import read_run
from burnish.recipe.components import check_components
from burnish.recipe.load import config_from_data, config_from_record
from burnish.recipe.plan import _retention as retention_plan
from burnish.recipe.resolve import resolve
from burnish.rollout.store.episodes import EpisodeStore
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import RetentionRow, read_retention
from burnish.run import pipeline
from burnish.run.folder import RunFolder
from burnish.trainer.evaluation.config import RetentionConfig
from burnish.trainer.evaluation.drift import kl_to_base
from burnish.trainer.evaluation.suites.gate import retention_row
from burnish.trainer.models.checkpoints import CheckpointRecord, latest, list_checkpoints, promoted, refuse_promotion, save_checkpoint
from burnish.trainer.models.finding import find_model
from burnish.trainer.models.folder import Origin, store_manifest, write_manifest
from burnish.trainer.models.manifest import read_manifest

pytestmark = pytest.mark.unit

RECIPE: dict[str, Any] = {"name": "kept", "model": "nano", "environment": "burnish/Arithmetic-v0"}


def limits(**given: Any) -> RetentionConfig:
    return RetentionConfig(suites=("burnish/choices-v1",), **given)


def judged(floor: tuple[int, int, int, int] = (64, 0, 0, 36), **given: Any) -> RetentionRow:
    """From 64 to 60 of 100 right with a chance of a quarter, 14 lost and 10 gained; the base loses and gains `floor` without training."""
    before, after = table(50, 14, 10, 26)
    kept, lost, gained, never = floor
    again = [1.0] * kept + [0.0] * lost + [1.0] * gained + [0.0] * never
    return retention_row("rft", 4, answers(before, 0.25), answers(again, 0.25), answers(after, 0.25), limits(**given))


def test_the_gate_asks_for_what_is_left_above_chance() -> None:
    row = judged()
    assert (row.items, row.before, row.after, row.lost, row.gained) == (100, 0.64, 0.60, 14, 10)
    assert row.retention == pytest.approx(0.35 / 0.39) and row.floor_retention == 1.0 and row.floor_forgotten == 0.0
    assert "retention 0.897 [" in row.not_promoted and "n = 100" in row.not_promoted and "min_retention = 0.95" in row.not_promoted
    assert judged(min_retention=0.89).not_promoted == "" and judged(min_retention=0).not_promoted == ""


def test_what_the_base_loses_without_training_is_not_forgotten() -> None:
    """7.1 % are forgotten. Between two evaluations of the base 4 of 100 go each way and 32 stay wrong: 0.04 / 0.75 - 0.25 x 0.32 / 0.75²,
    which is below 0; with 12 each way and 24 wrong it is 0.16 - 0.1067 = 5.3 %, so that 1.8 % are left over."""
    asked: dict[str, Any] = {"min_retention": 0, "max_lost": 0.05}
    assert "7.1% of 100 items forgotten, above max_lost = 0.05" in judged(**asked).not_promoted
    assert "forgotten, above" in judged((60, 4, 4, 32), **asked).not_promoted
    noisy = judged((52, 12, 12, 24), **asked)
    assert noisy.floor_forgotten == pytest.approx(0.0533, abs=1e-4) and noisy.not_promoted == ""
    assert "5.3% without training" in noisy.line


def test_texts_are_gated_by_perplexity_and_a_skill_that_was_not_there_by_nothing() -> None:
    worse = retention_row("cpt", 9, texts([2, 12], [4, 6]), texts([2, 12], [4, 6]), texts([3, 13], [4, 6]), limits())
    assert worse.retention == pytest.approx(0.8187, abs=1e-4) and "perplexity 4.06 -> 4.95" in worse.not_promoted
    assert worse.lost is None and worse.forgotten is None
    none, _ = table(2, 0, 0, 6)
    row = retention_row("cpt", 9, answers(none, 0.25), answers(none, 0.25), answers([0.0] * 8, 0.25), limits())
    assert row.retention is None and row.not_promoted == "" and "no skill above chance" in row.line


def test_a_phase_is_held_to_the_limits_of_its_own_table(tmp_path: Path) -> None:
    """36 of 39 points above chance are 0.897 of the skill: enough for a phase that is asked for 0.8, too little for the others."""
    (tmp_path / "talks.jsonl").touch()
    own = {"name": "mild", "kind": "sft", "steps": 1, "data": str(tmp_path / "talks.jsonl"), "min_retention": 0.8}
    phases = [{"kind": "rft"}, own, {"kind": "rft", "name": "strict", "max_lost": 0.05}]
    config = config_from_data({**RECIPE, "phases": phases, "retention": {"suites": ["burnish/choices-v1"], "max_lost": 0.2}})
    run = resolve(config_from_record(config.model_dump(mode="json")))
    assert run.retention is not None
    held = [one.held_to(run.retention) for one in run.phases]
    assert [(one.min_retention, one.max_lost) for one in held] == [(0.95, 0.2), (0.8, 0.2), (0.95, 0.05)]
    usual, mild, strict = (judged(min_retention=one.min_retention, max_lost=one.max_lost) for one in held)
    assert "below min_retention = 0.95" in usual.not_promoted and mild.not_promoted == ""
    assert "below min_retention = 0.95" in strict.not_promoted and "7.1% of 100 items forgotten, above" in strict.not_promoted
    assert (mild.min_retention, mild.max_lost, mild.limits) == (0.8, 0.2, "min_retention = 0.8, max_lost = 0.2")
    (plan,) = retention_plan(run, None)
    assert "after rft at least 95% of each kept, at most 20% of the items lost; after mild at least 80%" in plan.work
    alike = resolve(config_from_data({**RECIPE, "retention": {"suites": ["burnish/choices-v1"]}}))
    assert retention_plan(alike, None)[0].work.endswith("choices-v1: at least 95% of each kept")


@pytest.mark.parametrize("limit", [{"min_retention": 0.9}, {"max_lost": 0.1}])
def test_limits_of_a_phase_need_suites(limit: dict[str, float]) -> None:
    (key,) = limit
    with pytest.raises(ValueError, match=rf"rft\.{key}: has no effect without \[retention\]"):
        resolve(config_from_data({**RECIPE, "rft": limit}))
    with pytest.raises(ValueError, match=rf"rft\.{key}"):
        config_from_data({**RECIPE, "rft": {key: 1.5}, "retention": {"suites": ["burnish/choices-v1"]}})


def saved(run: Path, phase: str, step: int, final: bool = True) -> CheckpointRecord:
    def model(folder: Path) -> None:
        make_policy(folder)
        (folder / "burnish.json").unlink(missing_ok=True)
        write_manifest(folder, Origin(name=phase, stage="sft", source=phase))

    return save_checkpoint(run, phase, step, write_model=model, write_trainer_state=lambda folder: folder.mkdir(), final=final)


def test_a_run_stands_for_its_last_checkpoint_that_was_promoted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    cpt = saved(run, "cpt", 5)
    saved(run, "sft", 5, final=False)
    sft = saved(run, "sft", 9)
    assert find_model(run) == sft.model(run).resolve()
    refuse_promotion(run, sft, "burnish/choices-v1: 64.0% -> 52.0%")
    assert list_checkpoints(run)[-1].not_promoted == "burnish/choices-v1: 64.0% -> 52.0%" and latest(run) == list_checkpoints(run)[-1]
    assert promoted(run) == cpt, "nor the earlier checkpoint of the phase that was refused"
    assert find_model(run) == cpt.model(run).resolve() and find_model(sft.folder(run)) == sft.model(run).resolve()
    manifest = read_manifest(sft.model(run))
    assert manifest.not_promoted.startswith("burnish/choices-v1") and "not promoted" in (sft.model(run) / "README.md").read_text()
    refuse_promotion(run, cpt, "x")
    with pytest.raises(ValueError, match=r"promoted no checkpoint; to take one all the same, name it: .*sft-9"):
        find_model(run)
    rft = saved(run, "rft", 1, final=False)
    assert promoted(run) == rft, "what has not been judged is not refused"


def test_the_kl_to_the_base_is_what_its_own_answers_lost_in_probability(tmp_path: Path) -> None:
    """The base sampled 2 + 1 tokens at -0.2 each; the engine gives every token -0.5 now. What was not sampled does not count."""
    arrays = [([5, 6, 7, 2], [0, 0, 1, 1]), ([5, 9], [0, 1])]
    sequences = []
    for ids, sampled in arrays:
        mask = np.array(sampled, bool)
        logprobs = np.where(mask, np.float32(-0.2), np.float32(0))
        sequences.append(Trajectory(np.array(ids, np.int32), mask, logprobs, np.array(sampled, np.int32) - 1))
    moment = Moment("base", 0, "heldout", "sampled")
    with EpisodeStore(tmp_path, "run") as store:
        store.put(moment, [Episode(Task("heldout-1", 1), 0, tuple(sequences), (Message("user", "?"),), Reward(1.0))])
    fleet, worker, _ = fleet_over(make_policy(tmp_path / "policy"), [], "A")
    try:
        assert kl_to_base(fleet, tmp_path / moment.file, 64, 100) == pytest.approx(0.3, abs=1e-6)
        assert kl_to_base(fleet, tmp_path / moment.file, 2, 100) is None
        with pytest.raises(
            ValueError, match=r"heldout.sampled.parquet: episode 'heldout-1/0': token_ids: 2 to 9, but the model's tokens are 0 to 8"
        ):
            kl_to_base(fleet, tmp_path / moment.file, 64, 9)
    finally:
        worker.close()


def test_a_manifest_is_replaced_whole(tmp_path: Path) -> None:
    folder = make_policy(tmp_path / "policy")
    manifest = write_manifest(folder, Origin(name="a", stage="sft", source="a"))
    store_manifest(folder, manifest.model_copy(update={"not_promoted": "x"}))
    assert read_manifest(folder).not_promoted == "x" and not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"suites": []}, "retention.suites"),
        ({"suites": ["burnish/choices-v1"], "samples": 4}, "would say the same; give a temperature"),
        ({"suites": ["burnish/choices-v1"], "max_loss": 0.1}, "max_lost"),
        ({"suites": ["burnish/choices-v1"], "min_retention": 1.5}, "min_retention"),
    ],
)
def test_what_retention_may_not_say(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_from_data({**RECIPE, "retention": table})


def test_suites_that_are_not_there_are_said_before_a_run(tmp_path: Path) -> None:
    def problems(*suites: str, **more: Any) -> str:
        config = config_from_data({**RECIPE, **more, "retention": {"suites": list(suites)}})
        with pytest.raises(ValueError) as error:
            check_components(resolve(config))
        return str(error.value)

    assert "retention.suites: suite 'burnish/choice-v1' is unknown; did you mean 'burnish/choices-v1'?" in problems("burnish/choice-v1")
    assert "named twice" in problems("burnish/choices-v1", "burnish/choices-v1")
    file = tmp_path / "mine.toml"
    file.write_text('id = "tests/mine-v2"\nabout = "x"\nrows = "gone.jsonl"\nreward = "burnish/constraints-v1"\n')
    assert "retention.suites: tests/mine-v2: " in problems(str(file)) and "gone.jsonl" in problems(str(file))
    assert "raise it" in problems("burnish/procedural-v1", engine={"max_context": 48}, rollout={"max_tokens_per_turn": 8})


def test_the_suites_of_a_recipe_are_played_beside_its_own_environment() -> None:
    config = config_from_data({**RECIPE, "retention": {"suites": ["burnish/choices-v1", "burnish/plain-english-v1"]}})
    setup = resolve(config).worker_setup(Path("m"), {}, 0)
    (played,) = setup.blended
    assert (played.name, played.id, played.limits) == (
        "burnish/choices-v1",
        "burnish/SingleTurn-v0",
        {"max_turns": 1, "max_tokens_per_turn": 16},
    )
    (suite,) = [one for one in resolve(config).suites if one.id == played.name]
    assert (setup.success, played.success) == (config.success, suite.success)
    assert config_from_record(config.model_dump(mode="json")).retention == config.retention


def folder_of(path: Path) -> RunFolder:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(RECIPE))
    (path / "transcripts").mkdir()
    return RunFolder(path)


def test_a_report_says_which_skill_fell(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    folder.log_retention([judged(), judged(min_retention=0).model_copy(update={"suite": "tests/other-v1"})])
    assert [row.suite for row in read_run(folder.path).retention] == ["tests/suite-v1", "tests/other-v1"]
    page = write_report(folder.path).read_text()
    assert "The checkpoint after rft is kept and not promoted: tests/suite-v1: 64.0% -&gt; 60.0%" in page and "n = 100" in page
    assert page.count("kept and not promoted") == 1
    assert "yes<small>held to min_retention = 0, max_lost = 1</small>" in page and "Dashed" not in page, "of each another"


def test_what_comes_after_the_checkpoint_that_a_run_resumes_from_is_judged_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    folder.log_retention([judged().model_copy(update={"phase": "sft", "step": 9}), judged()])
    for name in ("base", "base-again", "sft", "rft"):
        (folder.suites / name).mkdir(parents=True)
    folder.rewind(["sft", "rft"], "rft", 2)
    assert [row.phase for row in read_retention(folder.retention_file)] == ["sft"]
    assert sorted(place.name for place in folder.suites.iterdir()) == ["base", "base-again", "sft"]


def test_suites_of_a_step_that_is_taken_back_are_measured_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    sooner, later = (judged().model_copy(update={"step": step}) for step in (2, 4))
    folder.log_retention([sooner])
    folder.log_retention([later])
    (folder.suites / "rft").mkdir(parents=True)
    folder.rewind(["rft"], "rft", 4)
    assert (folder.suites / "rft").is_dir()
    folder.rewind(["rft"], "rft", 3)
    assert [row.step for row in read_retention(folder.retention_file)] == [2]
    assert not (folder.suites / "rft").exists(), "they were those of step 4"


def test_a_phase_that_goes_on_is_judged_by_the_weights_of_its_new_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "run")
    folder.log_retention([judged()])
    for name in ("base", "base-again", "rft"):
        (folder.suites / name).mkdir(parents=True)
        (folder.suites / name / "results.json").write_text("[]")
    folder.rewind(["rft"], "rft", judged().step)
    assert (folder.suites / "rft").is_dir(), "so far it is where it was judged"

    class Begins(Exception):
        pass

    def begin(*_: object) -> None:
        raise Begins

    monkeypatch.setattr(pipeline, "_begin", begin)
    phase: Any = SimpleNamespace(name="rft", table=None)
    run: Any = SimpleNamespace(session=None, folder=folder, results={("rft", "greedy"): None, ("base", "greedy"): None})
    with pytest.raises(Begins):
        pipeline._train(run, phase, judged().step)
    assert sorted(place.name for place in folder.suites.iterdir()) == ["base", "base-again"]
    assert list(run.results) == [("base", "greedy")]
