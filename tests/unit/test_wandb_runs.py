"""A run of W&B, offline, read back from the file that `wandb sync` would send."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from burnish.recipe.tracking import TrackedRun, TrackingConfig
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, EvaluationResult, RollBackRow
from burnish.run.folder import RunFolder
from burnish.run.tracking import tracked
from burnish.run.wandb_runs import WandB

pytestmark = pytest.mark.unit

CONFIG = TrackingConfig(use=("burnish/wandb-v1",))
HOSTILE = "<script>../\x1b[31m\u202e'"
BLOCK = 32_768


@pytest.fixture
def wandb() -> Any:
    return pytest.importorskip("wandb", reason="W&B is not installed: make trackers")


@pytest.fixture
def told(tmp_path: Path) -> TrackedRun:
    folder = tmp_path / "runs" / "nano-1"
    folder.mkdir(parents=True)
    return TrackedRun("nano-1", folder, {"name": "demo", "model": "nano", "note": HOSTILE}, False)


def records(file: Path) -> Iterator[Any]:
    """What a run's file holds, in the framing of LevelDB's logs after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole of a record, or its end
            yield Record.FromString(whole)
            whole = b""


def test_wandb_holds_metrics_evaluations_alarms_and_the_config_and_is_sent_nowhere(wandb: Any, told: TrackedRun) -> None:
    warnings: list[str] = []
    result = EvaluationResult("sampled", "env", 1, 1, 0.5, 0.25, 0.75, 1.5, 1.0, 1.0, {"t": 0.5}, {HOSTILE: -0.25})
    with tracked(CONFIG, told, warnings.append) as trackers:
        trackers.metrics("rft", 1, {"reward_mean": 0.5, f"predicted/{HOSTILE}": 1.0})
        trackers.metrics("rft", 2, {"reward_mean": 0.75})
        trackers.evaluation(EvaluationRecord(phase="rft", step=2, result=result))
        RunFolder(told.folder, trackers).log_alarm(AlarmRow(phase="rft", step=2, guard="parting", action="warn", text=HOSTILE))
        for name in ("evaluations.jsonl", "report.html"):
            (told.folder / name).write_text(name)
    assert warnings == []
    (kept,) = (told.folder.parent / "wandb").glob("offline-run-*/*.wandb")
    found = list(records(kept))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.WhichOneof("record_type") == "history"
    ]
    assert [(row["rft/step"], row.get("rft/reward_mean")) for row in rows] == [(1, 0.5), (2, 0.75), (2, None)]
    assert rows[0][f"rft/predicted/{HOSTILE}"] == 1.0 and rows[2][f"rft/heldout/sampled/part/{HOSTILE}"] == -0.25
    runs = [one.run for one in found if one.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert (runs[0].display_name, runs[0].project, config["note"]) == ("nano-1", "burnish", HOSTILE)
    assert {name for name in ("evaluations.jsonl", "report.html") if (kept.parent / "files" / name).read_text() == name}
    assert {item.path for one in found for item in one.files.files} >= {"evaluations.jsonl", "report.html"}
    said = [json.loads(item.value_json) for one in found for item in one.summary.update if item.key == "alarms"]
    assert said == [[f"rft step 2, parting: warn: {HOSTILE}"]]
    with tracked(CONFIG, replace(told, resumed=True), warnings.append) as trackers:
        trackers.metrics("rft", 3, {"reward_mean": 1.0})
    files = sorted((told.folder.parent / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.name for file in files} == {kept.name}, "a run that goes on has the id of the one before"
    assert warnings == []


def test_an_unknown_mode_stops_the_run_before_it_begins(wandb: Any, told: TrackedRun) -> None:
    config = TrackingConfig(use=CONFIG.use, args={"burnish/wandb-v1": {"mode": "shared"}})
    with pytest.raises(ValueError, match="option 'mode': must be 'offline' or 'online', not 'shared'"), tracked(config, told, print):
        raise AssertionError("the run began")


def test_without_wandb_the_run_is_told_what_to_install(told: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.rpc.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"constraints/trackers\.txt '\.\[wandb\]'"):
        WandB(told)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a run of W&B, whose summary is replaced whole."""
    kept: Any = SimpleNamespace(
        summary={},
        saved=[],
        save=lambda file, **given: kept.saved.append(file),
        finish=lambda: None,
        log=lambda row: None,
        define_metric=lambda *given, **more: None,
    )
    fake = SimpleNamespace(
        init=lambda **given: kept, Settings=lambda **given: None, AlertLevel=SimpleNamespace(WARN="warn"), teardown=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", cast(Any, fake))
    monkeypatch.setattr("burnish.run.wandb_runs.require", lambda *given: None)
    return kept


def test_only_what_is_kept_here_has_report_and_evaluations_unasked(told: TrackedRun, stand_in: Any) -> None:
    for name in ("evaluations.jsonl", "report.html"):
        (told.folder / name).write_text("")
    online: dict[str, Any] = {"mode": "online"}
    cases: list[tuple[dict[str, Any], int]] = [({}, 2), (online, 0), ({**online, "report": True}, 2), ({"report": False}, 0)]
    for options, kept in cases:
        stand_in.saved.clear()
        WandB(told, **options).close()
        names = [Path(file).name for file in stand_in.saved]
        assert names == ["evaluations.jsonl", "report.html"][:kept], options


def drifted(step: int, action: str = "warn") -> AlarmRow:
    return AlarmRow(phase="rft", step=step, guard="drift", action=action, text="it drifts")


def test_a_run_that_goes_on_keeps_the_alarms_of_before(told: TrackedRun, stand_in: Any) -> None:
    """The alarms of a run that resumed would have been lost to the summary."""
    rows = [drifted(step) for step in (2, 5, 9, 7)]
    folder = RunFolder(told.folder)
    for row in rows[:3]:
        folder.log_alarm(row)
    going_on = WandB(replace(told, resumed=True))
    folder.rewind(["rft"], "rft", 6)
    folder.log_alarm(rows[3])
    going_on.alarm(rows[3])
    assert stand_in.summary["alarms"] == [f"rft step {step}, drift: warn: it drifts" for step in (2, 5, 7)]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_summary_has_the_alarms_that_the_folder_has_once_a_run_went_back(told: TrackedRun, stand_in: Any, resumed: bool) -> None:
    """Taken back with its step is what only warned; what the run went back for stays, though the same alarm is raised again."""
    folder, board = RunFolder(told.folder), WandB(told)
    for row in (drifted(4), drifted(5, "roll_back")):
        folder.log_alarm(row)
        board.alarm(row)
    folder.log_roll_back(RollBackRow(phase="rft", step=5, guards=("drift",), position=20))
    if resumed:
        board = WandB(replace(told, resumed=True))
    folder.rewind(["rft"], "rft", 3)
    if resumed:
        for row in (drifted(4), drifted(5, "roll_back")):
            folder.log_alarm(row)
            board.alarm(row)
    board.close()
    said = ["rft step 5, drift: roll_back: it drifts"]
    assert stand_in.summary["alarms"] == (said if not resumed else [*said, "rft step 4, drift: warn: it drifts", *said])
