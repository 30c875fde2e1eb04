"""A model folder: what burnish reads, trains, serves and exports.

It is an ordinary Hugging Face folder (`config.json`, `tokenizer.json` with a chat template, `*.safetensors`, `generation_config.json`)
plus, when burnish made it, its manifest (`manifest.py`) and its card. Nothing here imports torch: a folder is checked by its files, and the
folder of a trained policy is written from numpy arrays. Loading a model for real is `verify_model` (`importing.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...rollout.store.own_files import read_whole
from ...rollout.tokenizer_files import check_tokenizer_files
from ...rollout.writing import write_text, writing
from .card import model_card
from .config_file import check_config, ties_embeddings
from .manifest import (
    CARD_FILE,
    FILE_NAME,
    MANIFEST_FILE,
    WEIGHTS_SUFFIX,
    Manifest,
    Stage,
    Training,
    digests_of,
    lineage_of,
    own_manifest,
)
from .tokenizer import GIVE_TEMPLATE

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS_FILE}.index.json"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a model's files do not say of it.

    source: what it was made from, as a person typed it, or the checkpoint's name. parents: what it was made from directly, None where that
    is what its tokenizer and config are taken from; their lineages go on in this one. licence: that of the parents, unless given. The rest
    is as in `Manifest`.

    Example: `Origin(name="rft-40", stage="rft", source="inspection/rft-40", parents=(read_manifest(base),))`.
    """

    name: str
    stage: Stage
    source: str
    parents: Sequence[Manifest] | None = None
    training: Training | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(folder: Path, origin: Origin) -> Manifest:
    """Write manifest and card of a folder whose other files are in place, and digest those."""
    manifest = _described(folder, origin)
    store_manifest(folder, manifest)
    return manifest


def store_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest that is known, and its card, each whole or not at all."""
    for name, text in ((MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n"), (CARD_FILE, model_card(manifest))):
        draft = folder / f".{name}.tmp"
        write_text(draft, text)
        draft.replace(folder / name)


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a model folder; of one without, what its files say, as an import would: any folder that `check_model_folder` takes is
    a model."""
    return own_manifest(folder) or _described(folder, Origin(name=folder.resolve().name, stage="post-training", source=str(folder)))


def _described(folder: Path, origin: Origin) -> Manifest:
    parents = origin.parents or ()
    inherited = {parent.licence for parent in parents}
    return Manifest(
        name=origin.name,
        stage=origin.stage,
        source=origin.source,
        architecture=str(read_json(folder / "config.json")["architectures"][0]),
        parameters=count_parameters(folder),
        files=digests_of(folder),
        parents=tuple(dict.fromkeys(parent.digest for parent in parents)),
        lineage=lineage_of(parents),
        training=origin.training,
        metrics=dict(origin.metrics),
        licence=origin.licence or (inherited.pop() if len(inherited) == 1 else None),
        template_args=dict(origin.template_args),
        created_by=f"burnish {version('burnish')}",
        created_at=datetime.now(UTC),
    )


OTHERS = (
    "config.*.json", "tokenizer.*.json", "consolidated*", "tekken.json", "tokenizer.model.v*", "chat_template.json",
    "hf_quant_config.json", "modules.json", "sentence_*_config.json", "joint_head_config.json", "sparse_attention_config.json",
    "processor_config.json", "audio_tokenizer_config.json", "additional_chat_templates",
)  # fmt: skip
"""What transformers or vLLM take, where it is there, in place of the files that are checked here, or beside them.

`params.json` is read with `consolidated*` only. `preprocessor_config.json`, which says how images or sound are read, names a processor
whose chat template is that of `chat_template.jinja` unless one of these files has another. Both lie in folders of models that read text.
`additional_chat_templates` is a folder, of whose templates one called `default` takes the place of the model's own.
"""


def check_no_others(folder: Path) -> None:
    """Raise ValueError for a folder that is more than one model in the form that is checked here.

    transformers would load an adapter into whatever base model its file names, and both it and vLLM prefer some files to `config.json`,
    `tokenizer.json` and `model*.safetensors`: what nobody looked at would be trained and served.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"model folder {folder} holds an adapter (adapter_config.json); merge it into its base model and take that")
    others = sorted(path.name for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in OTHERS))
    if others:
        raise ValueError(f"model folder {folder} holds {others[0]}, which would be read in place of its checked files; remove it")
    odd = sorted(path.name for path in folder.glob(f"*{WEIGHTS_SUFFIX}") if not FILE_NAME.fullmatch(path.name))
    if odd:  # vLLM takes tensors from all there are, in the order of their names
        raise ValueError(f"model folder {folder} holds {odd[0]!r}, as a second copy of a file of weights is called; remove it")
    check_tokenizer_files(folder)


def check_model_folder(folder: Path, need_template: bool = True, need_weights: bool = True) -> None:
    """Check a folder by its files alone, without loading a model.

    Raises ValueError with one sentence: no such folder, `config.json` missing or unreadable, an unsupported architecture, no tokenizer,
    no chat template, no safetensors, a weight file that is cut short, or a file or key that has another file read in place of these.
    """
    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist")
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"model folder {folder} has no config.json; it must be a Hugging Face model folder")
    check_links(folder)
    check_no_others(folder)
    check_config(read_json(config), f"model folder {folder}")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"model folder {folder} has no tokenizer.json; save its fast tokenizer next to the weights")
    if need_template and not has_chat_template(folder):
        raise ValueError(f"model folder {folder} has no chat template; {GIVE_TEMPLATE} when importing it")
    files = weight_files(folder)
    if not files and not need_weights:
        return
    if not files:
        hint = "its weights are pickled, import it to convert them" if list(folder.glob("*.bin")) else "its weights are missing"
        raise ValueError(f"model folder {folder} has no *.safetensors: {hint}")
    for file in files:
        tensor_shapes(file)
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        missing = sorted({*index_names(index)} - {file.name for file in files})
        if missing:
            raise ValueError(f"model folder {folder} lacks the weight file {missing[0]} that its index names; copy the folder again")


def index_names(index: Path) -> list[str]:
    """The files that an index of weights names, once per tensor. Raises ValueError when it is no such index."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index} must hold a weight_map of tensors' names to file names; copy or download the model again")
    return list(names.values())


def check_links(folder: Path) -> None:
    """Raise ValueError when a file of the folder is a link to somewhere else, since what a folder shows must be its own, or no file that
    can be read to its end (a pipe, a device).

    A snapshot of the hub's cache, whose files are links into the `blobs` of that model, is whole with them.
    """
    home = folder.resolve()
    within = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in within):
            raise ValueError(f"{file} is a link that leads out of the folder; copy the file there, if it is meant")
        if file.exists() and not file.is_file() and not file.is_dir():
            raise ValueError(f"{file} is a pipe or a device, not a file; remove it")


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end an assistant message: `eos_token_id` of the generation config, else of the model config.

    Raises ValueError when neither names one: such a policy would never stop.
    """
    for name in ("generation_config.json", "config.json"):
        eos = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if eos is not None:
            ids = eos if isinstance(eos, list) else [eos]
            if not all(type(id) is int for id in ids):
                raise ValueError(f"{folder / name}: eos_token_id is {eos!r}; it must be a token's id, or a list of ids")
            return tuple(ids)
    raise ValueError(f"model folder {folder} names no eos_token_id in generation_config.json or config.json; generation would never stop")


def vocabulary_of(folder: Path) -> int:
    """How many tokens a model knows, ids 0 and up. Raises ValueError when its config does not say."""
    size = read_json(folder / "config.json").get("vocab_size")
    if type(size) is not int or size < 1:
        raise ValueError(f"{folder / 'config.json'}: vocab_size is {size!r:.60}; it must be the number of the model's tokens")
    return size


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in name order."""
    return sorted(file for file in folder.glob("*.safetensors") if file.is_file())


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file. Raises ValueError when its header or its length is wrong."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"weight file {file} is damaged or cut short ({error}); copy or download it again") from error


def count_parameters(folder: Path) -> int:
    shapes = {name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()}
    return sum(int(np.prod(shape)) for shape in shapes.values())


def write_model_folder(weights: Mapping[str, np.ndarray], like: Path, out: Path, origin: Origin) -> Manifest:
    """Write a policy's weights as a model folder with the config, tokenizer and template of `like`.

    weights: full `state_dict` names, as `Learner.weights()` gives them; `lm_head.weight` is left out where the config ties it to the
    embedding. `out` must not exist; use `atomic_folder` for durability.
    """
    from safetensors.numpy import save_file

    config = read_json(like / "config.json")
    tied = {"lm_head.weight"} if ties_embeddings(config) else set()
    out.mkdir(parents=True)
    copy_model_files(like, out)
    tensors = {key: np.ascontiguousarray(value) for key, value in weights.items() if key not in tied}
    with writing(out / WEIGHTS_FILE):
        save_file(tensors, out / WEIGHTS_FILE, metadata={"format": "pt"})
    dtypes = {str(value.dtype) for value in tensors.values()}
    if len(dtypes) == 1:
        write_text(out / "config.json", json.dumps({**config, "dtype": dtypes.pop()}, indent=2) + "\n")
    return write_manifest(out, origin if origin.parents is not None else replace(origin, parents=(manifest_of(like),)))


MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Everything of a model folder but its weights, manifest and card."""


def copy_model_files(source: Path, out: Path) -> None:
    """Copy config, tokenizer and template (no weights, no manifest)."""
    for name in MODEL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def copy_weights(source: Path, out: Path) -> None:
    """Copy the weight files, and the index of several."""
    for file in [*weight_files(source), source / WEIGHTS_INDEX]:
        if file.is_file():
            shutil.copyfile(file, out / file.name)


class MadeMeanwhile(ValueError):
    """Somebody else made the folder while it was being made here. Theirs is whole."""


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` when the block ends well, and disappears when it raises.

    Files and folder are flushed to disk before the rename, so after a crash `out` is either whole or absent. Raises ValueError when
    `out` exists, MadeMeanwhile when it does by the end.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another place or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    draft.mkdir()
    try:
        yield draft
        for path in sorted(draft.rglob("*")):
            _fsync(path)
        _fsync(draft)
        try:
            draft.rename(out)
        except OSError as error:
            if not out.exists():
                raise
            raise MadeMeanwhile(f"{out} was made by another process meanwhile; choose another place or remove it") from error
        _fsync(out.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a small file of a model folder. Raises ValueError when it holds none, or is larger than any is."""
    content = read_whole(file)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return data
