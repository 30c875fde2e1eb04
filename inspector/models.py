"""The models that runs have made: every checkpoint with its stage, what it came from, and what was measured of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..trainer.models.checkpoints import JOURNAL, CheckpointRecord, recorded_checkpoints
from ..trainer.models.manifest import Manifest, own_manifest
from .runs import check_run

WORTH = ("success", "reward_mean", "reward", "held_out_loss", "loss", "perplexity", "preferred")
"""What says of a checkpoint what it is worth, in this order; whatever else was measured at its step is shown when asked for."""


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A checkpoint of a run, its manifest read and its files not.

    lineage: names of what it was made from, the latest first. refused: why it was not promoted, "" where it was not refused. problem: why
    the manifest, the folder, or the run's list of checkpoints, cannot be read; then the rest is empty.
    """

    run: str
    name: str
    stage: str = ""
    parameters: int = 0
    digest: str = ""
    lineage: tuple[str, ...] = ()
    metrics: Mapping[str, float] | None = None
    refused: str = ""
    written: datetime | None = None
    problem: str = ""

    @property
    def when(self) -> str:
        """Example: "2026-01-01 12:00 UTC"."""
        return self.written.strftime("%Y-%m-%d %H:%M UTC") if self.written else ""

    @property
    def worth(self) -> dict[str, float]:
        """Those of its metrics that say what it is worth."""
        metrics = self.metrics or {}
        return {name: metrics[name] for name in WORTH if name in metrics}

    @property
    def others(self) -> dict[str, float]:
        """Its other metrics, by name."""
        return {name: value for name, value in (self.metrics or {}).items() if name not in WORTH}


def models_of(run: str, path: Path) -> list[ModelLine]:
    """The checkpoints of a run folder, the latest first; one line that says why where they cannot be read."""
    try:
        check_run(path)
        records = recorded_checkpoints(path) if (path / JOURNAL).is_file() else []
    except (OSError, ValueError) as error:
        return [ModelLine(run, "", problem=str(error))]
    return [_line(run, path, record) for record in reversed(records)]


def _line(run: str, path: Path, record: CheckpointRecord) -> ModelLine:
    if not record.is_there(path):
        return ModelLine(run, record.name, problem="its folder is gone")
    try:
        manifest = own_manifest(record.model(path))
    except (OSError, ValueError) as error:
        return ModelLine(run, record.name, problem=str(error))
    measured = dict(sorted({**(manifest.metrics if manifest else {}), **record.metrics}.items()))
    known = ModelLine(run, record.name, metrics=measured, refused=record.not_promoted, written=record.created_at)
    if manifest is None:
        return known
    return ModelLine(
        run, record.name, manifest.stage, manifest.parameters, manifest.digest, lineage(manifest), measured, record.not_promoted,
        record.created_at,
    )  # fmt: skip


def lineage(manifest: Manifest) -> tuple[str, ...]:
    """Names of the models before this one, each once, parents before their parents.

    Example: of a checkpoint of RFT on one of SFT on `nano`: `("sft-120", "nano")`.
    """
    known = {ancestor.digest: ancestor for ancestor in manifest.lineage}
    names, queue, seen = list[str](), deque[str](manifest.parents), {manifest.digest}
    while queue:
        digest = queue.popleft()
        if digest not in seen:  # a manifest from elsewhere may claim that it descends from itself
            seen.add(digest)
            names.append(known[digest].name)
            queue += known[digest].parents
    return tuple(names)


def by_run(lines: Iterable[ModelLine]) -> dict[str, list[ModelLine]]:
    """The lines under the name of their run, in their order."""
    found: dict[str, list[ModelLine]] = {}
    for line in lines:
        found.setdefault(line.run, []).append(line)
    return found
