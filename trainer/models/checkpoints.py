"""Checkpoints of a run: an append-only `checkpoints.jsonl` and one folder per checkpoint.

    RUN/checkpoints.jsonl
    RUN/checkpoints/rft-40/model/      an ordinary model folder (see `trainer.model_folder`)
    RUN/checkpoints/rft-40/trainer/    what training needs to go on: optimizer, random states, ledger

A folder appears under its name only when it is whole and on disk, and its line is written after that. A crash therefore leaves either a
usable checkpoint or none; the one before it is never touched. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypedDict, Unpack

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...envs.pydantic_words import first_error
from ...rollout.store.own_files import check_own, own_file, read_whole
from ...rollout.writing import writing
from .best import BestBy
from .folder import atomic_folder, check_model_folder, manifest_of, store_manifest
from .manifest import MAX_REASON

JOURNAL: Final = "checkpoints.jsonl"
FOLDER: Final = "checkpoints"


class CheckpointRecord(BaseModel):
    """One saved checkpoint. `final` marks the last of its phase, and `ended` says why that came before the phase's last step, "" where it
    did not; `metrics` are numbers worth reading beside it. `weights_of` is the step whose weights it has, where the phase went back to
    them at its end. `not_promoted` says why it was refused promotion since, "" where it was not.

    Example: `CheckpointRecord(phase="rft", step=40, final=False, metrics={"reward": 0.81}, created_at=…)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["saved"] = "saved"
    phase: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    step: int = Field(ge=0)
    final: bool = False
    ended: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    created_at: datetime
    weights_of: int | None = Field(default=None, ge=0)
    not_promoted: str = ""

    @property
    def name(self) -> str:
        return f"{self.phase}-{self.step}"

    def folder(self, run: Path) -> Path:
        return run / FOLDER / self.name

    def model(self, run: Path) -> Path:
        return self.folder(run) / "model"

    def trainer_state(self, run: Path) -> Path:
        return self.folder(run) / "trainer"

    def is_there(self, run: Path) -> bool:
        """Whether its folder is, which somebody may have removed by hand."""
        return self.folder(run).is_dir()


class CheckpointFacts(TypedDict, total=False):
    """What a checkpoint's record says beside its name (see `CheckpointRecord`)."""

    final: bool
    ended: str
    metrics: dict[str, float]
    weights_of: int | None


class PrunedRecord(BaseModel):
    """A checkpoint whose folder was removed on purpose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["pruned"] = "pruned"
    name: str


class RefusedRecord(BaseModel):
    """A checkpoint that was refused promotion, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event: Literal["not_promoted"] = "not_promoted"
    name: str
    why: str


Record = CheckpointRecord | PrunedRecord | RefusedRecord
_Line = Annotated[Record, Field(discriminator="event")]
_LINE: TypeAdapter[Record] = TypeAdapter(_Line)


def save_checkpoint(
    run: Path,
    phase: str,
    step: int,
    *,
    write_model: Callable[[Path], object],
    write_trainer_state: Callable[[Path], object],
    **facts: Unpack[CheckpointFacts],
) -> CheckpointRecord:
    """Save one checkpoint atomically and record it, with what there is to say of it.

    write_model and write_trainer_state each receive the path of a folder to create and fill (`write_model_folder`, `Learner.save`).
    A folder of the same name that no line records is what a crash between rename and record left: it is replaced. Raises ValueError when
    the checkpoint is recorded already; whatever the writers raise passes through, leaving nothing behind.
    """
    record = CheckpointRecord(phase=phase, step=step, created_at=datetime.now(UTC), **facts)
    if record.name in {known.name for known in list_checkpoints(run)}:
        raise ValueError(f"run {run} has a checkpoint {record.name} already; resume from its latest one or start another run")
    _remove_leftovers(run, record.name)
    with atomic_folder(record.folder(run)) as draft:
        write_model(draft / "model")
        write_trainer_state(draft / "trainer")
        for part in ("model", "trainer"):
            assert (draft / part).is_dir(), f"the writer of checkpoint part {part!r} made no folder"
        check_model_folder(draft / "model")
    _append(run, record)
    return record


def list_checkpoints(run: Path) -> list[CheckpointRecord]:
    """Every checkpoint of the run that was not pruned, in the order saved.

    Raises ValueError when a line other than a torn last one is not valid, or when a recorded folder is missing.
    """
    records = recorded_checkpoints(run)
    for record in records:
        if not record.is_there(run):
            raise ValueError(f"run {run} records checkpoint {record.name}, but its folder is gone; put it back or start another run")
    return records


def recorded_checkpoints(run: Path) -> list[CheckpointRecord]:
    """The same for who only looks, with those whose folder is gone.

    Raises ValueError when a line other than a torn last one is not valid.
    """
    own_file(run, JOURNAL)
    check_own(run, run / FOLDER)
    kept: dict[str, CheckpointRecord] = {}
    for number, line in enumerate(_complete_lines(run / JOURNAL), start=1):
        try:
            record = _LINE.validate_json(line)
        except ValidationError as error:
            raise ValueError(f"{run / JOURNAL}, line {number} is not a checkpoint record: {first_error(error)}") from error
        if isinstance(record, PrunedRecord):
            kept.pop(record.name, None)
        elif isinstance(record, RefusedRecord):
            if record.name in kept:
                kept[record.name] = kept[record.name].model_copy(update={"not_promoted": record.why})
        else:
            kept[record.name] = record
    for record in kept.values():
        check_own(run, record.model(run))
    return list(kept.values())


def latest(run: Path, phase: str | None = None) -> CheckpointRecord | None:
    """The checkpoint saved last (of one phase, if given), or None when there is none."""
    records = [record for record in list_checkpoints(run) if phase in (None, record.phase)]
    return records[-1] if records else None


def promoted(run: Path) -> CheckpointRecord | None:
    """The checkpoint saved last of a phase whose end was not refused promotion; None when there is none."""
    found = _not_refused(list_checkpoints(run))
    return found[-1] if found else None


def promoted_there(run: Path) -> tuple[CheckpointRecord | None, list[str]]:
    """The same among those whose folder is there, for who needs no more than one that can speak; and the names of those that are gone."""
    records = recorded_checkpoints(run)
    found = [record for record in _not_refused(records) if record.is_there(run)]
    return found[-1] if found else None, [record.name for record in records if not record.is_there(run)]


def _not_refused(records: list[CheckpointRecord]) -> list[CheckpointRecord]:
    refused = {record.phase: record.not_promoted for record in records if record.final}
    return [record for record in records if not refused.get(record.phase)]


def refuse_promotion(run: Path, record: CheckpointRecord, why: str) -> None:
    """Record that a checkpoint is not promoted: it stays, and who names the run does not get it. Its model's manifest says so too."""
    folder = record.model(run)
    manifest = manifest_of(folder)
    store_manifest(folder, manifest.model_copy(update={"not_promoted": why[:MAX_REASON]}))
    _append(run, RefusedRecord(name=record.name, why=why))


def best(run: Path, phase: str, by: BestBy) -> CheckpointRecord | None:
    """The first of the best checkpoints of a phase; None when none was measured."""
    records = [record for record in list_checkpoints(run) if record.phase == phase]
    measured = [(key, record) for record in records if (key := by.key(record.metrics)) is not None]
    return min(measured, key=lambda one: one[0])[1] if measured else None


def prune(run: Path, keep_last: int, best_by: Mapping[str, BestBy | None] | None = None) -> list[str]:
    """Remove old checkpoints and return their names. The `keep_last` most recent stay, and so does the final one of every phase, and
    the best one of a phase under way that `best_by` has something for.

    Raises ValueError when keep_last is below 1: a run always keeps what it can resume from.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least the last checkpoint must stay")
    records = list_checkpoints(run)
    last = {record.phase: record for record in records}
    ended = {phase for phase, record in last.items() if record.final}  # not by an earlier one: a phase that had ended may get more steps
    kept = [best(run, phase, by) for phase, by in (best_by or {}).items() if by is not None and phase not in ended]
    doomed = [record for record in records[:-keep_last] if not record.final and record not in kept]
    for record in doomed:
        _append(run, PrunedRecord(name=record.name))
        shutil.rmtree(record.folder(run))
    return [record.name for record in doomed]


def _remove_leftovers(run: Path, name: str) -> None:
    """Remove what crashed saves left: an unrecorded folder of this name, and drafts."""
    if not (run / FOLDER).is_dir():
        return
    for path in (run / FOLDER).iterdir():
        if path.name == name or re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
            shutil.rmtree(path)


def _complete_lines(journal: Path) -> list[bytes]:
    """The lines that end in a newline; a torn one at the end was never promised to anyone."""
    return read_whole(journal).split(b"\n")[:-1] if journal.is_file() else []


def _append(run: Path, record: Record) -> None:
    run.mkdir(parents=True, exist_ok=True)
    journal = run / JOURNAL
    whole = sum(len(line) + 1 for line in _complete_lines(journal))
    with writing(journal), journal.open("r+b" if journal.exists() else "w+b") as stream:
        stream.truncate(whole)
        stream.seek(whole)
        stream.write(json.dumps(record.model_dump(mode="json")).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
