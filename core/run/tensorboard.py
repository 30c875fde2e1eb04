"""`burnish/tensorboard-v1`: a run's numbers as TensorBoard's event files, written by tensorboardX, which Ray brings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.recipe.tracking import TrackedRun, evaluation_metrics
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, read_alarms
from burnish.run.folder import RunFolder

HOME = "tensorboard"


class TensorBoard:
    """Event files in the run's folder, `tensorboard/PHASE/`, or in `folder/RUN/PHASE/`; `tensorboard --logdir runs` finds them.

    Steps are those of the phase. Scalars are the metrics by their names, and of an evaluation `heldout/MODE/success`, its interval's ends,
    `reward` and the parts. What a run takes back is purged, whether it was resumed or not; an alarm for which it went back stays. Alarms
    and the config are texts.

    Raises ImportError when tensorboardX is missing, OSError when the folder cannot be written.
    """

    def __init__(self, run: TrackedRun, *, folder: str = "") -> None:
        from tensorboardX import SummaryWriter

        self._made = SummaryWriter
        self._home = Path(folder) / run.name if folder else run.folder / HOME
        self._home.mkdir(parents=True, exist_ok=True)
        self._writers: dict[str, Any] = {}
        self._last: dict[str, int] = {}
        self._went_back: list[AlarmRow] = []
        self._earlier = RunFolder(run.folder).alarms_file if run.resumed else None  # read once what came after is taken back
        if not run.resumed:
            with SummaryWriter(str(self._home)) as writer:
                writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2, ensure_ascii=False)}\n```")

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        if step <= self._last.get(phase, 0):
            self._writers.pop(phase).close()
        self._last[phase] = step
        writer = self._writer(phase, step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def evaluation(self, record: EvaluationRecord) -> None:
        writer = self._writer(record.phase, record.step + 1)
        for name, value in evaluation_metrics(record.result).items():
            writer.add_scalar(name, value, record.step)
        writer.flush()

    def alarm(self, row: AlarmRow) -> None:
        writer = self._writer(row.phase, row.step + 1)
        if row.action == "roll_back" and row not in self._went_back:
            self._went_back.append(row)
        _write(writer, row)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, phase: str, purged: int) -> Any:
        """The writer of a phase. Where files are there already, TensorBoard forgets what they have from step `purged` on: that of new
        metrics, and the one after an evaluation or an alarm, which come after the metrics of their step. What the run went back for is
        written again."""
        if phase not in self._writers:
            home = self._home / phase
            before = len(list(home.iterdir())) if home.is_dir() else 0
            # By their names alone, files of one second would be one file.
            writer = self._writers[phase] = self._made(str(home), purge_step=purged if before else None, filename_suffix=f".{before}")
            earlier, self._earlier = self._earlier, None
            if earlier is not None and earlier.is_file():
                self._went_back += [row for row in read_alarms(earlier) if row.action == "roll_back"]
            for row in self._went_back if before else ():
                if row.phase == phase and row.step >= purged:
                    _write(writer, row)
        return self._writers[phase]


def _write(writer: Any, row: AlarmRow) -> None:
    writer.add_text(f"alarm/{row.guard}", f"{row.action}: {row.text}", row.step)
