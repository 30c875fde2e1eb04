"""`burnish/mlflow-v1`: a run's numbers in MLflow's store, by default a database beside the runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from burnish.envs.types import Episode
from burnish.recipe.tracking import TrackedRun, check_traces, evaluation_metrics
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import AlarmRow, EvaluationRecord
from burnish.rpc.extras import require
from burnish.run.folder import RunFolder
from burnish.run.mlflow_traces import log_episode, trace_into

DATABASE, ARTIFACTS = "mlflow.db", "mlflow"
BATCH = 1000
"""Metrics that MLflow takes at once."""
LONGEST_NAME, LONGEST_TEXT = 250, 5000
"""Characters of a metric's name and of a tag that MLflow keeps."""


class MLflow:
    """A run in MLflow. uri: of its tracking store; by default the database `mlflow.db` in the folder of runs, for
    `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`. experiment: that the run belongs to. traces: episodes of each step, and of
    each evaluation, that are kept as traces, the attempts at its first tasks; what was said goes into the store with them. report: whether
    `report.html` and `evaluations.jsonl`, which have some of what was said, are kept; left out, they are where there is no `uri`.

    Metrics are called `PHASE/NAME`, those of an evaluation `PHASE/heldout/MODE/…`; characters that MLflow refuses in names are `_`. The
    config is an artifact, at the end evaluations and report are, too, and alarms, which may quote answers, are tags. A run that resumes
    goes on in the same MLflow run; what it takes again stands there twice.

    Raises ValueError when MLflow is not installed or `traces` is no number of episodes, and what it raises when the store cannot be opened.
    """

    def __init__(self, run: TrackedRun, *, uri: str = "", experiment: str = "burnish", traces: int = 0, report: bool | None = None) -> None:
        self.check_start(traces=traces)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing of a run leaves the machine unasked
        from mlflow import MlflowClient

        home, self.traces = run.folder.resolve(), traces
        if not uri:
            _open(home.parent / DATABASE)
        self._folder, self._report = RunFolder(home), not uri if report is None else report
        store = uri or f"sqlite:///{home.parent / DATABASE}"
        self._client = MlflowClient(store)
        found = self._client.get_experiment_by_name(experiment)
        where = None if uri else (home.parent / ARTIFACTS).as_uri()
        self._experiment: str = found.experiment_id if found else self._client.create_experiment(experiment, where)
        self._run: str = self._earlier(home) if run.resumed else ""
        if not self._run:
            tags = {"burnish.folder": _mark(home), "burnish.path": str(home)}
            self._run = self._client.create_run(self._experiment, tags=tags, run_name=run.name).info.run_id
            for name in ("name", "model", "environment"):
                self._client.log_param(self._run, name, str(run.config.get(name, ""))[:LONGEST_TEXT])
            self._client.log_text(self._run, json.dumps(run.config, indent=2), "config.json")

        if traces:
            trace_into(store)

    @staticmethod
    def check_start(*, traces: int = 0, **_: Any) -> None:
        check_traces(traces)
        require("burnish/mlflow-v1", ["mlflow"], "mlflow")

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        at = int(1000 * time.time())
        rows = [Metric(_name(f"{phase}/{name}"), value, at, step) for name, value in values.items()]
        for first in range(0, len(rows), BATCH):
            self._client.log_batch(self._run, metrics=rows[first : first + BATCH])

    def evaluation(self, record: EvaluationRecord) -> None:
        self.metrics(record.phase, record.step, evaluation_metrics(record.result))

    def alarm(self, row: AlarmRow) -> None:
        said = f"{row.action}: {row.text}"[:LONGEST_TEXT]
        self._client.set_tag(self._run, _name(f"alarm/{row.phase}/{row.step}/{row.guard}"), said)

    def episodes(self, at: Moment, episodes: Sequence[Episode]) -> None:
        for one in episodes:
            log_episode(self._client, self._experiment, self._run, at, one)

    def close(self) -> None:
        try:
            for file in self._folder.results if self._report else ():
                self._client.log_artifact(self._run, str(file))
        finally:
            self._client.set_terminated(self._run)

    def _earlier(self, home: Path) -> str:
        """The run that was made of this folder before it was resumed, "" when there is none."""
        asked = f"tags.`burnish.folder` = '{_mark(home)}'"
        found: list[Any] = self._client.search_runs([self._experiment], asked, max_results=1)
        return str(found[0].info.run_id) if found else ""


def _open(database: Path) -> None:
    """Raise ValueError saying why a database cannot be opened: MLflow would try for longer than a run waits for it to start."""
    try:
        with closing(sqlite3.connect(database)) as opened:
            opened.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise ValueError(f"{database}: {error}") from error


def _mark(home: Path) -> str:
    """What tells a folder from others, in letters that need no quoting."""
    return hashlib.sha256(str(home).encode("utf-8", "surrogateescape")).hexdigest()


def _name(name: str) -> str:
    """A name as MLflow takes it. Example: `_name("rft/predicted/<b>") == "rft/predicted/_b_"`."""
    parts = (re.sub(r"[^A-Za-z0-9_\-. :]", "_", part) for part in name.split("/"))
    return "/".join("_" if part in {"", ".", ".."} else part for part in parts)[:LONGEST_NAME]
