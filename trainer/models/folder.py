"""A model folder: what burnish reads, trains, serves and exports.

It is an ordinary Hugging Face folder (`config.json`, `tokenizer.json` with a chat template, `*.safetensors`, `generation_config.json`)
plus, when burnish made it, `burnish.json`, the record of where it came from. Nothing here imports torch: a folder is checked by its files,
and the folder of a trained policy is written from numpy arrays. Loading a model for real is `trainer.models.verify_model`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

RECORD_FILE = "burnish.json"
WEIGHTS_FILE = "model.safetensors"

Stage = Literal["none", "pretraining", "midtraining", "sft", "post-trained", "rft"]
"""How far a model's training has come; "none" is a random initialisation."""

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Decoder-only architectures with full causal attention: what packing in the learner assumes."""


class Ancestor(BaseModel):
    """One earlier model in a lineage. Example: `Ancestor(name="nano", stage="none", weights_sha256="9f…")`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    stage: Stage
    weights_sha256: str


class ModelRecord(BaseModel):
    """The `burnish.json` of a model folder.

    source: what it was made from, as a person typed it. weights_sha256: over all weight files in name order. parents: the models it was
    trained from, oldest first. parameters: count, tied weights once. template_args: variables of the chat template that it was trained
    with, and is served with.

    Example: `ModelRecord(name="nano", stage="none", source="new:nano seed=0", architecture="LlamaForCausalLM", parameters=3_486_976, …)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str
    stage: Stage
    source: str
    architecture: str
    parameters: int
    weights_sha256: str
    parents: tuple[Ancestor, ...] = ()
    template_args: dict[str, Any] = {}
    created_by: str
    created_at: datetime

    @property
    def as_ancestor(self) -> Ancestor:
        return Ancestor(name=self.name, stage=self.stage, weights_sha256=self.weights_sha256)


def read_record(folder: Path) -> ModelRecord:
    """The record of a model folder. Raises ValueError when `burnish.json` is missing or does not fit the schema."""
    file = folder / RECORD_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {RECORD_FILE}; bring the model in with `burnish models import {folder}`")
    try:
        return ModelRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{file} is not a valid model record: {where}: {first['msg']}") from error


def write_record(
    folder: Path,
    *,
    name: str,
    stage: Stage,
    source: str,
    parents: tuple[Ancestor, ...] = (),
    template_args: Mapping[str, Any] | None = None,
) -> ModelRecord:
    """Record a folder whose weights are in place; everything else about it is read from its files."""
    record = _described(folder, name, stage, source, parents, template_args)
    (folder / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n")
    return record


def recorded(folder: Path) -> ModelRecord | None:
    """What `burnish.json` says of a model folder, None for one without, as every other tool writes them. Raises ValueError as
    `read_record` does when it is not sound."""
    return read_record(folder) if (folder / RECORD_FILE).is_file() else None


def record_of(folder: Path) -> ModelRecord:
    """The record of a model folder; of one without, what its files say, as an import would: any folder that `check_model_folder` takes is
    a model."""
    return recorded(folder) or _described(folder, folder.resolve().name, "post-trained", str(folder))


def _described(
    folder: Path,
    name: str,
    stage: Stage,
    source: str,
    parents: tuple[Ancestor, ...] = (),
    template_args: Mapping[str, Any] | None = None,
) -> ModelRecord:
    return ModelRecord(
        name=name,
        stage=stage,
        source=source,
        architecture=str(read_json(folder / "config.json")["architectures"][0]),
        parameters=count_parameters(folder),
        weights_sha256=weights_sha256(folder),
        parents=parents,
        template_args=dict(template_args or {}),
        created_by=f"burnish {version('burnish')}",
        created_at=datetime.now(UTC),
    )


def check_no_adapter(folder: Path) -> None:
    """Raise ValueError for a folder with an adapter: transformers would load it into whatever base model its file names."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"model folder {folder} holds an adapter (adapter_config.json); merge it into its base model and take that")


def check_model_folder(folder: Path, need_template: bool = True, need_weights: bool = True) -> None:
    """Check a folder by its files alone, without loading a model.

    Raises ValueError with one sentence: no such folder, `config.json` missing or unreadable, an unsupported architecture, no tokenizer,
    no chat template, no safetensors, or a weight file that is cut short.
    """
    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist")
    check_links(folder)
    check_no_adapter(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"model folder {folder} has no config.json; it must be a Hugging Face model folder")
    check_architecture(read_json(config), str(folder))
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"model folder {folder} has no tokenizer.json; save its fast tokenizer next to the weights")
    if need_template and not has_chat_template(folder):
        raise ValueError(f"model folder {folder} has no chat template; give one with `--chat-template FILE` when importing it")
    files = weight_files(folder)
    if not files and not need_weights:
        return
    if not files:
        hint = "its weights are pickled, import it to convert them" if list(folder.glob("*.bin")) else "its weights are missing"
        raise ValueError(f"model folder {folder} has no *.safetensors: {hint}")
    for file in files:
        tensor_shapes(file)
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if index.is_file():
        missing = sorted(set(read_json(index)["weight_map"].values()) - {file.name for file in files})
        if missing:
            raise ValueError(f"model folder {folder} lacks the weight file {missing[0]} that its index names; copy the folder again")


def check_links(folder: Path) -> None:
    """Raise ValueError when a file of the folder is a link to somewhere else: what a folder shows must be its own.

    A snapshot of the hub's cache, whose files are links into the cache's folder of that model, is whole with that folder.
    """
    home = folder.resolve()
    within = home.parent.parent if home.parent.name == "snapshots" else home
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() and not file.resolve().is_relative_to(within):
            raise ValueError(f"{file} is a link that leads out of the folder; copy the file there, if it is meant")


def check_architecture(config: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless the config names one supported architecture."""
    names = config.get("architectures") or ["(none)"]
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise ValueError(f"{where}: architecture {names[0]} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the output layer is the embedding. Every supported architecture keeps them apart where its config does not say."""
    return bool(config.get("tie_word_embeddings", False))


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
            return tuple(int(id) for id in (eos if isinstance(eos, list) else [eos]))
    raise ValueError(f"model folder {folder} names no eos_token_id in generation_config.json or config.json; generation would never stop")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in name order."""
    return sorted(folder.glob("*.safetensors"))


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


def parameters_of(config: Mapping[str, Any]) -> int:
    """Parameters of a supported architecture by its `config.json` alone, tied weights once.

    Example: a Llama of 32 layers, 4,096 hidden units, 32 heads, 11,008 intermediate units and 32,000 tokens has 6,738,415,616.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * config["intermediate_size"] + 2 * hidden
    match config["architectures"][0]:
        case "Qwen2ForCausalLM":
            layer += queries + 2 * keys  # biases of q, k and v
        case "Qwen3ForCausalLM":
            layer += 2 * head_dim  # norms of q and k
        case _:
            layer += (queries + 2 * keys + hidden) if config.get("attention_bias") else 0
            layer += (2 * config["intermediate_size"] + hidden) if config.get("mlp_bias") else 0
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + hidden)


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the names and bytes of all weight files, in name order."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_model_folder(
    weights: Mapping[str, np.ndarray],
    like: Path,
    out: Path,
    *,
    name: str,
    stage: Stage,
    source: str,
    parents: tuple[Ancestor, ...] | None = None,
    template_args: Mapping[str, Any] | None = None,
) -> ModelRecord:
    """Write a policy's weights as a model folder with the config, tokenizer and template of `like`.

    weights: full `state_dict` names, as `Learner.weights()` gives them; `lm_head.weight` is left out where the config ties it to the
    embedding. parents: None takes the lineage of `like` and `like` itself. template_args: see `ModelRecord`. `out` must not
    exist; use `atomic_folder` for durability.
    """
    from safetensors.numpy import save_file

    config = read_json(like / "config.json")
    if parents is None:
        base = record_of(like)
        parents = (*base.parents, base.as_ancestor)
    tied = {"lm_head.weight"} if ties_embeddings(config) else set()
    out.mkdir(parents=True)
    copy_model_files(like, out)
    tensors = {key: np.ascontiguousarray(value) for key, value in weights.items() if key not in tied}
    save_file(tensors, out / WEIGHTS_FILE, metadata={"format": "pt"})
    dtypes = {str(value.dtype) for value in tensors.values()}
    if len(dtypes) == 1:
        (out / "config.json").write_text(json.dumps({**config, "dtype": dtypes.pop()}, indent=2) + "\n")
    return write_record(out, name=name, stage=stage, source=source, parents=parents, template_args=template_args)


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
"""Everything of a model folder but its weights and its record."""


def copy_model_files(source: Path, out: Path) -> None:
    """Copy config, tokenizer and template (no weights, no record)."""
    for name in MODEL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` when the block ends well, and disappears when it raises.

    Files and folder are flushed to disk before the rename, so after a crash `out` is either whole or absent. Raises ValueError when
    `out` exists.
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
        draft.rename(out)
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
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return data
