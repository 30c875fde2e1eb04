"""Adapters that a version serves beside its base model: low-rank ones, as peft stores them and burnish's own checkpoints hold them.

An adapter's folder is somebody's data: only its two files are read, its rank and forms are held to the base's weights before an engine
sees it, and where it says that its base comes from is not looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..rollout.engine.vllm_openai import LORA_RANKS, Adapter
from ..rollout.store.own_files import own_file, read_whole
from ..trainer.models.checkpoints import FOLDER, JOURNAL, promoted
from ..trainer.models.manifest import weights_sha256

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
"""What peft puts before a model's own names."""
NOT_SERVED: Final = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication",
    "alora_invocation_tokens", "trainable_token_indices",
)  # fmt: skip
"""What an adapter may say that it is beside a plain one."""
LEARNER: Final = Path("trainer", "learner")
"""Where a checkpoint has its adapters."""


def find_adapters(adapters: Mapping[str, str], model: Path) -> dict[str, Adapter]:
    """The adapters by name. Raises ValueError, one line, naming the one that is none, or not one of this model folder."""
    found = {}
    for name, given in adapters.items():
        try:
            found[name] = find_adapter(given, model)
        except ValueError as error:
            raise ValueError(f"adapter {name!r}: {error}") from None
    return found


def find_adapter(given: str, model: Path) -> Adapter:
    """The adapter that a path stands for: peft's folder, a checkpoint that trained adapters, or a run, of which it is the latest promoted
    one. Raises ValueError when it is none, or its layers are not those of the model."""
    folder = _adapter_folder(Path(os.path.expanduser(given)))
    config = _config(folder)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder} holds an adapter of type {str(config.get('peft_type'))[:40]!r}; only LORA is served")
    if own_file(folder, WEIGHTS) is None:
        raise ValueError(f"{folder} has no {WEIGHTS}; store the adapter as safetensors")
    if told := next((key for key in NOT_SERVED if config.get(key)), None):
        raise ValueError(f"{folder} says {told}, which vLLM does not serve; merge the adapter into its base")
    trained_on = _trained_on(folder)
    if trained_on and trained_on != weights_sha256(model):
        raise ValueError(
            f"{folder} was trained on another model than {model}; give the one that these adapters began on: "
            "the run's, or the last checkpoint of the phase before, where a phase has a lora of its own"
        )
    rank = _rank(_shapes(folder / WEIGHTS), _shapes_of(model), folder)
    if not config.get("rank_pattern") and config.get("r") != rank:
        raise ValueError(f"{folder} says rank {str(config.get('r'))[:40]}, by which its weights are scaled, and its layers have {rank}")
    return Adapter(folder, rank)


def _adapter_folder(given: Path) -> Path:
    if (given / JOURNAL).is_file() or (given / FOLDER).is_dir():
        record = promoted(given)
        if record is None:
            raise ValueError(f"run {given} promoted no checkpoint; name the one that is meant")
        given = record.folder(given)
    for folder in (given, given / LEARNER):
        if own_file(folder, CONFIG) is not None:
            return folder.resolve()
    raise ValueError(f"{given} holds no adapter: neither it nor {LEARNER} below it has {CONFIG}")


def _config(folder: Path) -> dict[str, Any]:
    return _object(folder / CONFIG)


def _trained_on(folder: Path) -> str:
    """The digest of the weights that a checkpoint of burnish's was trained on, "" where that is not said."""
    state = own_file(folder, "state.json")
    return str(_object(state).get("base") or "") if state is not None else ""


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_whole(file))
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


Shapes = Mapping[str, tuple[int, ...]]


def _shapes(file: Path) -> Shapes:
    """The shapes of a safetensors file's tensors by name; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118  # it is no mapping
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def _shapes_of(model: Path) -> Shapes:
    return {name: shape for file in sorted(model.glob("*.safetensors")) for name, shape in _shapes(file).items()}


def _rank(adapter: Shapes, base: Shapes, folder: Path) -> int:
    """The rank of the widest layer. Raises ValueError for a tensor that is no half of a layer's adapter, or fits none of the base's."""
    ranks = {rank for _, rank in _layers(adapter, base, folder)}
    if not ranks:
        raise ValueError(f"{folder} holds no layer")
    if max(ranks) > LORA_RANKS[-1]:
        raise ValueError(f"{folder} has rank {max(ranks)}; at most {LORA_RANKS[-1]} is served")
    return max(ranks)


def _layers(adapter: Shapes, base: Shapes, folder: Path) -> Iterator[tuple[str, int]]:
    for name in adapter:
        layer, half, _ = name.removeprefix(PREFIX).partition(".lora_A.weight")
        if not half:
            layer, half, _ = name.removeprefix(PREFIX).partition(".lora_B.weight")
        a, b = (adapter.get(f"{PREFIX}{layer}.lora_{which}.weight", ()) for which in "AB")
        if not half or len(a) != 2 or len(b) != 2:
            raise ValueError(f"{folder} holds {name[:120]!r}, which is no half of a low-rank adapter of a linear layer")
        if a[0] != b[1] or base.get(f"{layer}.weight") != (b[0], a[1]):
            raise ValueError(
                f"{folder} has an adapter of {layer[:120]!r} that fits no layer of the model; give the model it was trained on"
            )
        yield layer, a[0]
