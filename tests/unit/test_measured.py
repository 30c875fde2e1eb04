"""What a run measured of a checkpoint stands in its manifest and card, and the model is the same one as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.one_step import make_policy

from burnish.cli.models import show_named
from burnish.rollout.store.records import EvaluationRecord, EvaluationResult, Mode, RetentionRow
from burnish.run.folder import RunFolder
from burnish.run.measured import tell_last, tell_measured
from burnish.trainer.models.checkpoints import CheckpointRecord, latest, refuse_promotion, save_checkpoint
from burnish.trainer.models.folder import Origin, write_manifest
from burnish.trainer.models.manifest import Measurement, read_manifest, verify_digests

pytestmark = pytest.mark.unit


def result(mode: Mode, success: float) -> EvaluationResult:
    tasks = {f"t{i}": float(i < 4 * success) for i in range(4)}
    return EvaluationResult(mode, "env", 4, 4, success, success / 2, (1 + success) / 2, 0.0, 1.0, 9.0, tasks)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"name": "x", "model": "m", "environment": "burnish/Arithmetic-v0"}))
    return RunFolder(tmp_path / "run")


def saved(run: RunFolder, phase: str, step: int) -> CheckpointRecord:
    def model(folder: Path) -> None:
        make_policy(folder)
        (folder / "burnish.json").unlink()
        write_manifest(folder, Origin(name=phase, stage="sft", source=phase, metrics={"loss": 0.5}))

    return save_checkpoint(run.path, phase, step, write_model=model, write_trainer_state=lambda folder: folder.mkdir(), final=True)


def test_a_manifest_is_told_what_was_measured_of_its_model(run: RunFolder) -> None:
    model = saved(run, "sft", 9).model(run.path)
    before = read_manifest(model)
    for phase, step, mode, success in (("base", 0, "greedy", 0.25), ("sft", 9, "greedy", 0.5), ("sft", 9, "sampled", 0.75)):
        run.log_evaluation(EvaluationRecord(phase=phase, step=step, result=result(mode, success)))  # type: ignore[arg-type]
    row = RetentionRow(phase="sft", step=9, suite="tests/notes-v1", kind="texts", items=50, before=12.0, after=12.5, retention=0.96)
    run.log_retention([row])
    tell_measured(run, "sft", 8)
    assert read_manifest(model) == before, "of another step nothing is told"
    tell_measured(run, "sft", 9)
    after = read_manifest(model)
    assert after.measured == (
        Measurement(what="success", how="greedy", value=0.5, n=4, low=0.25, high=0.75),
        Measurement(what="success", how="sampled", value=0.75, n=4, low=0.375, high=0.875),
        Measurement(what="tests/notes-v1", how="texts", value=12.5, n=50, retention=0.96),
    )
    assert (after.digest, after.weights_sha256, after.metrics) == (before.digest, before.weights_sha256, {"loss": 0.5})
    assert verify_digests(model) == after
    card = (model / "README.md").read_text()
    assert "| success, greedy | 50.0% \\(95 %: 25.0% to 75.0%\\), n = 4 |" in card
    assert "| tests/notes-v1, texts | perplexity 12.50, retention 0.960, n = 50 |" in card
    lines = show_named(str(model), run.path).lines
    assert any(line.endswith("success, sampled: 75.0% (95 %: 37.5% to 87.5%), n = 4") for line in lines)
    written = (model / "burnish.json").stat().st_mtime_ns
    tell_last(run)
    assert (model / "burnish.json").stat().st_mtime_ns == written, "what is told is not told again"


def test_what_a_run_was_interrupted_before_telling_is_told_when_it_is_resumed(run: RunFolder) -> None:
    checkpoint = saved(run, "sft", 9)
    run.log_evaluation(EvaluationRecord(phase="sft", step=9, result=result("greedy", 0.5)))
    refuse_promotion(run.path, checkpoint, "a skill fell")
    tell_last(run)
    manifest = read_manifest(checkpoint.model(run.path))
    assert [one.value for one in manifest.measured] == [0.5] and manifest.not_promoted == "a skill fell"
    record = latest(run.path)
    assert record is not None and record.not_promoted == "a skill fell"
