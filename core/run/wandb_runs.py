"""`burnish/wandb-v1`: a run's numbers as a run of Weights & Biases, kept beside the runs and sent nowhere unless asked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Literal

from burnish.recipe.tracking import TrackedRun, evaluation_metrics
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, read_alarms
from burnish.rpc.extras import require
from burnish.run.folder import RunFolder

Mode = Literal["offline", "online"]
LONGEST_TITLE, LONGEST_TEXT = 60, 1000
"""Characters of an alarm that are kept."""


class WandB:
    """A run of W&B. mode: "offline" writes `wandb/offline-run-…` in the folder of runs, for `wandb sync runs/wandb/offline-run-*`;
    "online" sends at once, to the account of `WANDB_API_KEY`. project, entity: where it belongs. report: whether
    `report.html` and `evaluations.jsonl`, which have some of what was said, are files of it; left out, they are offline.

    Metrics are called `PHASE/NAME` over `PHASE/step`, those of an evaluation `PHASE/heldout/MODE/…`. The alarms of `alarms.jsonl`, which
    may quote answers, stand in the run's summary, those of before a resume too, and are alerts online. A run that resumes has the id of the
    one before; offline it is a second folder of the same run. Evaluations and report are files of it at the end. Neither code nor git,
    console or machine statistics are recorded.

    Raises ValueError when wandb is not installed, and what it raises when the run cannot begin.
    """

    def __init__(
        self, run: TrackedRun, *, mode: Mode = "offline", project: str = "burnish", entity: str = "", report: bool | None = None
    ) -> None:
        self.check_start()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing of a run leaves the machine unasked
        import wandb

        home = run.folder.resolve()
        self._folder, self._report = RunFolder(home), mode == "offline" if report is None else report
        self._run: Any = wandb.init(
            project=project,
            entity=entity or None,
            name=run.name,
            id=hashlib.sha256(str(home).encode("utf-8", "surrogateescape")).hexdigest()[:16],
            resume="allow",
            config=dict(run.config),
            dir=str(home.parent),
            settings=wandb.Settings(
                mode=mode,
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        self._online, self._alert, self._wait = mode == "online", wandb.AlertLevel.WARN, wandb.teardown
        self._phases, self._alarms = set[str](), list[str]()

    @staticmethod
    def check_start(**_: Any) -> None:
        require("burnish/wandb-v1", ["wandb"], "wandb")

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{phase}/step", hidden=True)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        self._run.log({f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in values.items()}})

    def evaluation(self, record: EvaluationRecord) -> None:
        self.metrics(record.phase, record.step, evaluation_metrics(record.result))

    def alarm(self, row: AlarmRow) -> None:
        self._say_alarms()
        if self._online:
            self._run.alert(title=f"{row.guard} in {row.phase}"[:LONGEST_TITLE], text=_said(row), level=self._alert)

    def _say_alarms(self) -> None:
        """Let the summary have the alarms that the folder has: those of steps that were taken back are in neither."""
        known = [_said(row) for row in read_alarms(self._folder.alarms_file)] if self._folder.alarms_file.is_file() else []
        if known != self._alarms:
            self._run.summary["alarms"], self._alarms = known, known

    def close(self) -> None:
        self._say_alarms()
        try:
            for file in self._folder.results if self._report else ():
                self._run.save(str(file), base_path=str(file.parent), policy="now", glob=False)
        finally:
            self._run.finish()
            self._wait()  # its own process writes on for a moment


def _said(row: AlarmRow) -> str:
    return f"{row.phase} step {row.step}, {row.guard}: {row.action}: {row.text}"[:LONGEST_TEXT]
