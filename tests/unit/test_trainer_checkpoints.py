"""Checkpoints: whole or absent, recorded in order, pruned without losing what a run can resume from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from burnish.trainer.models import checkpoints
from burnish.trainer.models.best import BestBy
from burnish.trainer.models.checkpoints import CheckpointRecord, best, latest, list_checkpoints, prune, save_checkpoint
from burnish.trainer.models.importing import ModelSize, new_model

pytestmark = pytest.mark.unit

SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(["some text to train on"], folder, SIZE)
    return folder


def write_state(folder: Path) -> None:
    folder.mkdir()
    (folder / "state.json").write_text("{}")


def save(
    run: Path,
    model: Path,
    step: int,
    *,
    phase: str = "rft",
    final: bool = False,
    metrics: dict[str, float] | None = None,
    weights_of: int | None = None,
) -> CheckpointRecord:
    return save_checkpoint(
        run,
        phase,
        step,
        write_model=lambda folder: shutil.copytree(model, folder),
        write_trainer_state=write_state,
        final=final,
        metrics={"reward": step / 10} if metrics is None else metrics,
        weights_of=weights_of,
    )


def names(run: Path) -> list[str]:
    return [record.name for record in list_checkpoints(run)]


def on_disk(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def test_a_saved_checkpoint_is_the_latest(model: Path, tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    save(tmp_path, model, 1)
    record = save(tmp_path, model, 2)
    assert latest(tmp_path) == record
    assert (record.phase, record.step, record.metrics) == ("rft", 2, {"reward": 0.2})
    assert (record.model(tmp_path) / "config.json").is_file()
    assert (record.trainer_state(tmp_path) / "state.json").is_file()


def test_latest_of_a_phase(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 9, phase="sft")
    save(tmp_path, model, 1)
    found = latest(tmp_path, "sft")
    assert found is not None
    assert found.name == "sft-9"


def test_a_crash_while_writing_leaves_the_previous_one_usable(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 1)

    def crash(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("…")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, "rft", 2, write_model=lambda folder: shutil.copytree(model, folder), write_trainer_state=crash)
    assert names(tmp_path) == ["rft-1"]
    assert on_disk(tmp_path) == {"rft-1"}
    save(tmp_path, model, 2)
    assert names(tmp_path) == ["rft-1", "rft-2"]


def test_a_kill_while_writing_leaves_a_draft_that_the_next_save_removes(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 1)
    (tmp_path / "checkpoints" / ".rft-2.0123abcd.tmp").mkdir()
    assert names(tmp_path) == ["rft-1"]
    save(tmp_path, model, 2)
    assert on_disk(tmp_path) == {"rft-1", "rft-2"}


def test_a_crash_between_the_folder_and_its_record_leaves_the_previous_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, model, 1)

    def crash(run: Path, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "_append", crash)
        save(tmp_path, model, 2)
    assert on_disk(tmp_path) == {"rft-1", "rft-2"}
    assert names(tmp_path) == ["rft-1"]
    save(tmp_path, model, 2)
    assert names(tmp_path) == ["rft-1", "rft-2"]


def test_a_torn_last_line_is_ignored_and_overwritten(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 1)
    journal = tmp_path / "checkpoints.jsonl"
    with journal.open("ab") as stream:
        stream.write(b'{"event": "saved", "phase": "rf')
    assert names(tmp_path) == ["rft-1"]
    save(tmp_path, model, 2)
    assert names(tmp_path) == ["rft-1", "rft-2"]
    assert journal.read_bytes().count(b"\n") == 2


def test_a_bad_line_in_the_middle_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints.jsonl").write_text('{"event": "saved"}\n')
    with pytest.raises(ValueError, match="line 1 is not a checkpoint record"):
        latest(tmp_path)


def test_a_recorded_folder_that_is_gone_is_an_error_not_an_older_checkpoint(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 1)
    shutil.rmtree(save(tmp_path, model, 2).folder(tmp_path))
    with pytest.raises(ValueError, match="records checkpoint rft-2"):
        latest(tmp_path)


def test_a_step_is_saved_once(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 1)
    with pytest.raises(ValueError, match="has a checkpoint rft-1 already"):
        save(tmp_path, model, 1)


def test_an_unsound_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        save_checkpoint(tmp_path, "rft", 1, write_model=lambda folder: folder.mkdir(), write_trainer_state=write_state)
    assert latest(tmp_path) is None


BY_LOSS = BestBy(("held_out_loss",), "rows")


def test_of_equal_success_the_reward_decides_and_of_equal_rewards_the_earlier_step() -> None:
    by = BestBy(("success", "reward"), "tasks", highest=True)
    rows = [
        {},
        {"success": 0.5, "reward": 0.1},
        {"success": 0.5, "reward": 0.3},
        {"success": 0.5, "reward": 0.3},
        {"success": 0.4, "reward": 9},
    ]
    assert [by.is_best(rows[: n + 1]) for n in range(len(rows))] == [False, True, True, False, False]
    assert by.said(rows[2]) == "success 0.5, reward 0.3"


def test_the_best_checkpoint_is_the_first_with_the_highest_success(model: Path, tmp_path: Path) -> None:
    by = BestBy(("success", "reward"), "tasks", highest=True)
    for step, success, reward in ((10, 0.5, 0.1), (20, 0.6, 0.2), (30, 0.6, 0.2), (40, 0.2, 0.9)):
        save(tmp_path, model, step, metrics={"success": success, "reward": reward})
    found = best(tmp_path, "rft", by)
    assert found is not None and found.step == 20
    assert prune(tmp_path, 1, {"rft": by}) == ["rft-10", "rft-30"]


def test_pruning_keeps_the_best_of_a_phase_until_that_has_ended(model: Path, tmp_path: Path) -> None:
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.5), (40, 1.7)):
        save(tmp_path, model, step, phase="sft", metrics={"held_out_loss": loss})
    save(tmp_path, model, 45, phase="sft")
    best_by = {"sft": BY_LOSS, "rft": None}
    assert prune(tmp_path, 1, best_by) == ["sft-10", "sft-30", "sft-40"]
    found = best(tmp_path, "sft", BY_LOSS)
    assert found is not None and found.step == 20
    save(tmp_path, model, 50, phase="sft", final=True, metrics={"held_out_loss": 1.5}, weights_of=20)
    assert prune(tmp_path, 1, best_by) == ["sft-20", "sft-45"]
    assert best(tmp_path, "rft", BY_LOSS) is None


def test_pruning_keeps_the_best_of_a_phase_that_was_given_more_steps_after_its_end(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 2, phase="sft", metrics={"held_out_loss": 2.0})
    save(tmp_path, model, 4, phase="sft", final=True, metrics={"held_out_loss": 1.5})
    for step, loss in ((6, 1.0), (8, 1.2), (9, 1.3)):
        save(tmp_path, model, step, phase="sft", metrics={"held_out_loss": loss})
    assert prune(tmp_path, 1, {"sft": BY_LOSS}) == ["sft-2", "sft-8"]
    found = best(tmp_path, "sft", BY_LOSS)
    assert found is not None and found.step == 6
    save(tmp_path, model, 10, phase="sft", final=True, metrics={"held_out_loss": 1.0}, weights_of=6)
    assert prune(tmp_path, 1, {"sft": BY_LOSS}) == ["sft-6", "sft-9"]


def test_pruning_keeps_the_last_ones_and_the_final_one_of_every_phase(model: Path, tmp_path: Path) -> None:
    save(tmp_path, model, 5, phase="cpt")
    save(tmp_path, model, 9, phase="cpt", final=True)
    save(tmp_path, model, 3, phase="sft", final=True)
    for step in (1, 2, 3):
        save(tmp_path, model, step)
    assert prune(tmp_path, keep_last=2) == ["cpt-5", "rft-1"]
    assert names(tmp_path) == ["cpt-9", "sft-3", "rft-2", "rft-3"]
    assert on_disk(tmp_path) == set(names(tmp_path))
    assert prune(tmp_path, keep_last=2) == []
    with pytest.raises(ValueError, match="at least the last"):
        prune(tmp_path, keep_last=0)
