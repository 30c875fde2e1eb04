"""A run in MLflow's store, read back with its own client."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from burnish.recipe.tracking import TrackedRun, TrackingConfig
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, EvaluationResult
from burnish.run.mlflow_store import MLflow, _name
from burnish.run.tracking import tracked

pytestmark = pytest.mark.unit

CONFIG = TrackingConfig(use=("burnish/mlflow-v1",))
HOSTILE = "<script>../\x1b[31m\u202e'"


@pytest.fixture
def mlflow() -> Any:
    return pytest.importorskip("mlflow", reason="MLflow is not installed: make trackers")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this file lie beside each other: MLflow takes seconds to make a database."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def told(runs: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    monkeypatch.chdir(runs)  # where MLflow itself puts artifacts of a store that is named
    folder = runs / re.sub(r"\W", "_", request.node.name)
    folder.mkdir()
    return TrackedRun(folder.name, folder, {"name": "demo", "model": "nano", "note": HOSTILE}, False)


def kept_of(mlflow: Any, run: TrackedRun, experiment: str = "burnish") -> tuple[Any, Any]:
    """The store, and what it has of a run."""
    client = mlflow.MlflowClient(f"sqlite:///{run.folder.parent}/mlflow.db")
    asked = f"attributes.run_name = '{run.name}'"
    (found,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], asked)
    return client, found


def test_mlflow_holds_metrics_evaluations_alarms_and_the_config(mlflow: Any, told: TrackedRun) -> None:
    warnings: list[str] = []
    (told.folder / "evaluations.jsonl").write_text("{}\n")
    result = EvaluationResult("sampled", "env", 1, 1, 0.5, 0.25, 0.75, 1.5, 1.0, 1.0, {"t": 0.5}, {HOSTILE: -0.25})
    with tracked(CONFIG, told, warnings.append) as trackers:
        trackers.metrics("rft", 1, {"reward_mean": 0.5, f"predicted/{HOSTILE}": 1.0})
        trackers.metrics("rft", 2, {"reward_mean": 0.75})
        trackers.evaluation(EvaluationRecord(phase="rft", step=2, result=result))
        trackers.alarm(AlarmRow(phase="rft", step=2, guard="parting", action="warn", text=HOSTILE))
        (told.folder / "report.html").write_text("<p>after the last step")
    assert warnings == []
    client, run = kept_of(mlflow, told)
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "rft/reward_mean")] == [(1, 0.5), (2, 0.75)]
    assert (run.info.run_name, run.info.status, run.data.params["model"]) == (told.name, "FINISHED", "nano")
    assert run.data.metrics[_name(f"rft/predicted/{HOSTILE}")] == 1.0 and run.data.metrics["rft/heldout/sampled/success"] == 0.5
    assert run.data.tags["alarm/rft/2/parting"] == f"warn: {HOSTILE}"
    kept = list((told.folder.parent / "mlflow" / run.info.run_id).rglob("config.json"))
    assert len(kept) == 1 and '"name": "demo"' in kept[0].read_text()
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"config.json", "evaluations.jsonl", "report.html"}
    with tracked(CONFIG, replace(told, resumed=True), warnings.append) as trackers:
        trackers.metrics("rft", 3, {"reward_mean": 1.0})
    again = kept_of(mlflow, told)[1]
    assert (again.info.run_id, again.data.metrics["rft/reward_mean"]) == (run.info.run_id, 1.0)


def test_what_was_said_is_sent_to_no_store_elsewhere_unasked(mlflow: Any, told: TrackedRun) -> None:
    """A store that is named may be anywhere, and the report has some of it, and so have the labels of evaluations."""
    (told.folder / "report.html").write_text("<p>what was said")
    (told.folder / "evaluations.jsonl").write_text("{}\n")
    store = f"sqlite:///{told.folder.parent}/mlflow.db"
    for name, asked in (("unasked", False), ("asked", True)):
        options: dict[str, Any] = {"uri": store, "experiment": name, **({"report": True} if asked else {})}
        config = TrackingConfig(use=CONFIG.use, args={CONFIG.use[0]: options})
        with tracked(config, told, pytest.fail):
            pass
        client, run = kept_of(mlflow, told, name)
        kept = {one.path for one in client.list_artifacts(run.info.run_id)}
        assert kept == {"config.json", *(["evaluations.jsonl", "report.html"] if asked else [])}


def test_a_report_that_cannot_be_kept_ends_the_run_in_mlflow_all_the_same(mlflow: Any, told: TrackedRun) -> None:
    warnings: list[str] = []
    with tracked(CONFIG, told, warnings.append):
        (told.folder / "report.html").write_text("<p>")
        home = told.folder.parent / "mlflow" / kept_of(mlflow, told)[1].info.run_id
        home.rename(told.folder / "gone")
        home.write_text("in the way")
    assert len(warnings) == 1 and "it gets nothing more of this run" in warnings[0]
    assert kept_of(mlflow, told)[1].info.status == "FINISHED"


@pytest.mark.parametrize("there", ["a folder", "a text"])
def test_a_store_that_cannot_be_opened_stops_the_run_before_it_begins(mlflow: Any, tmp_path: Path, there: str) -> None:
    """And at once, with the reason: MLflow itself would try for a minute and more."""
    database, run = tmp_path / "mlflow.db", TrackedRun("nano-1", tmp_path / "nano-1", {}, False)
    if there == "a folder":
        database.mkdir()
    else:
        database.write_text("no database" * 100)
    said = rf"tracking: burnish/mlflow-v1 cannot start: ValueError: {database}: (unable to open database file|file is not a database); put"
    with pytest.raises(ValueError, match=said), tracked(CONFIG, run, print):
        raise AssertionError("the run began")


def test_without_mlflow_the_run_is_told_what_to_install(told: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.rpc.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"constraints/trackers\.txt '\.\[mlflow\]'"):
        MLflow(told)


@pytest.mark.parametrize("id", ["burnish/mlflow-v1", "burnish/wandb-v1"])
def test_a_dry_run_knows_what_keeps_a_tracker_from_starting(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.rpc.extras.find_spec", lambda name: None)
    (said,) = TrackingConfig(use=(id,)).problems()
    assert said.startswith(f"tracking: {id} needs ") and "constraints/trackers.txt '.[" in said
    monkeypatch.setattr("burnish.rpc.extras.find_spec", lambda name: name)
    assert not list(TrackingConfig(use=(id,)).problems())
    option = "traces" if "mlflow" in id else "mode"
    (said,) = TrackingConfig(use=(id,), args={id: {option: "x"}}).problems()
    assert said.startswith(f"tracking: tracker {id!r}, option {option!r}: must be ") and said.endswith(", not 'x'")
    (said,) = TrackingConfig(use=(id,), args={id: {"report": "no"}}).problems()
    assert said.startswith(f"tracking: tracker {id!r}, option 'report': must be ")
    if option == "traces":
        (said,) = TrackingConfig(use=(id,), args={id: {option: -1}}).problems()
        assert said == "tracking: traces must be a number of episodes, 0 for none, not -1"


def test_names_are_as_mlflow_takes_them() -> None:
    assert _name("rft/predicted/<b>/../x/") == "rft/predicted/_b_/_/x/_"
    assert len(_name("x" * 1000)) == 250
