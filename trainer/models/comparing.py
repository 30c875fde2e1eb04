"""What is different between two models: their weights tensor by tensor, what their manifests say, and what was measured of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...rollout.store.own_files import own_file
from ...rollout.store.records import EvaluationResult, Mode, read_evaluations
from .checkpoints import FOLDER, recorded_checkpoints
from .finding import MODELS, verified_model
from .folder import manifest_of
from .manifest import Manifest

COMPARED = ("digest", "stage", "architecture", "parameters", "tokenizer_sha256", "licence", "source")
"""Of two manifests."""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How far one tensor of the second model is from the first's: the norm of the difference over the norm of the first, infinite where
    that is 0."""

    name: str
    relative: float


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """first, second: their manifests. tensors: those of both, in the order of their names. only_first, only_second: tensors that the other
    lacks or has in another shape. relative: of all weights of both as one vector. measured: by mode, what a run
    measured of each, if one did."""

    first: Manifest
    second: Manifest
    tensors: tuple[TensorChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    relative: float
    measured: tuple[dict[Mode, EvaluationResult], dict[Mode, EvaluationResult]]

    @property
    def facts(self) -> Iterator[tuple[str, str, str]]:
        """What the manifests say, where it differs: (what, of the first, of the second)."""
        for name in COMPARED:
            values = [str(getattr(one, name)) for one in (self.first, self.second)]
            if values[0] != values[1]:
                yield name, values[0], values[1]
        for name in sorted({*self.first.metrics, *self.second.metrics}):
            values = [f"{one.metrics[name]:.6g}" if name in one.metrics else "–" for one in (self.first, self.second)]
            if values[0] != values[1]:
                yield f"metric {name}", values[0], values[1]
        for mode in sorted({*self.measured[0], *self.measured[1]}):
            values = [f"{one[mode].success:.1%} (n = {len(one[mode].task_success)})" if mode in one else "–" for one in self.measured]
            yield f"success, {mode}", values[0], values[1]


def compare_models(first: str | Path, second: str | Path, models_dir: Path = MODELS) -> ModelComparison:
    """Compare two models. Every tensor of both is read. Raises ValueError when one is not sound."""
    from .tensors import Tensors

    folders = [verified_model(model, models_dir) for model in (first, second)]
    one, other = (Tensors(folder) for folder in folders)
    shared = [name for name in one.names if one.shapes[name] == other.shapes.get(name)]
    changes, moved, whole = [], 0.0, 0.0
    for name in shared:
        before, after = one.read(name).double(), other.read(name).double()
        apart, length = float((after - before).square().sum()), float(before.square().sum())
        changes.append(TensorChange(name, _ratio(apart, length)))
        moved, whole = moved + apart, whole + length
    return ModelComparison(
        manifest_of(folders[0]),
        manifest_of(folders[1]),
        tuple(changes),
        tuple(sorted(set(one.names) - set(shared))),
        tuple(sorted(set(other.names) - set(shared))),
        _ratio(moved, whole),
        (measured(folders[0]), measured(folders[1])),
    )


def measured(model: Path) -> dict[Mode, EvaluationResult]:
    """By mode, what its run measured of a checkpoint after the phase; empty for any other model."""
    run = model.parents[2] if len(model.parents) > 2 and model.parents[1].name == FOLDER else None
    if run is None or own_file(run, "evaluations.jsonl") is None:
        return {}
    own = [record for record in recorded_checkpoints(run) if record.name == model.parent.name]
    return {
        record.result.mode: record.result
        for record in read_evaluations(run / "evaluations.jsonl")
        if own and (record.phase, record.step) == (own[0].phase, own[0].step)
    }


def _ratio(apart: float, length: float) -> float:
    return math.sqrt(apart / length) if length else (math.inf if apart else 0.0)
