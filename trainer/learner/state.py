"""A learner's state on disk: tensors as safetensors, everything else as JSON, no pickle; a folder is complete or does not exist.

- weights.safetensors: parameters and persistent buffers under their Hugging Face names, tied ones once; or, where adapters are trained,
  adapter_model.safetensors and adapter_config.json in their place: a folder that peft loads over the base model
- optimizer.safetensors: AdamW moments and step counts, `<parameter>:<state>`
- reference.safetensors: what is trained, as it is in the reference policy, when a KL penalty uses one
- critic.safetensors, critic_optimizer.safetensors: the same of the critic, where there is one
- state.json: version, the phase's step and optimizer settings, random state

Tensors are whole, however many ranks had slices of them, so a state can be taken over by another number of ranks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...rollout.writing import write_text, writing
from .ranks import laid_out_as

FORMAT = 1


def write_state(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], texts: Mapping[str, str] | None = None
) -> None:
    """Write one `<name>.safetensors` per entry of `tensors`, the files of `texts`, and `state.json`, beside `folder`, then rename.

    Raises ValueError when `folder` holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; save into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        for name, group in tensors.items():
            with writing(file := partial / f"{name}.safetensors"):
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}, file)
        for name, text in (texts or {}).items():
            write_text(partial / name, text)
        write_text(partial / "state.json", json.dumps({"format": FORMAT, **state}, indent=1))
        for file in partial.iterdir():
            _flush(file)
        partial.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """The contents of `state.json`. Raises ValueError when `folder` holds no learner state of this format."""
    file = folder / "state.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no learner state (state.json is missing)")
    state: dict[str, Any] = json.loads(file.read_text())
    if state.get("format") != FORMAT:
        raise ValueError(f"{file} has format {state.get('format')!r}; this version of burnish reads {FORMAT}")
    return state


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of `<name>.safetensors`. Raises ValueError when it is missing."""
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder} is not a whole learner state: {file.name} is missing")
    return load_file(file)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, those shared under several names once."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | buffers


def load_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy whole `tensors` into `own`, in place. Raises ValueError naming one that is missing, left over or of another shape."""
    wrong = sorted(own.keys() ^ tensors.keys()) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise ValueError(f"the weights in {where} are of another model: {wrong[0]!r} does not match ({len(wrong)} such tensors)")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(laid_out_as(tensor, tensors[name]))


def rng_state(device: torch.device) -> dict[str, str]:
    """The states of torch's generators, as hex."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: bytes(state.tolist()).hex() for name, state in states.items()}


def set_rng_state(states: Mapping[str, str], device: torch.device) -> None:
    """The inverse of `rng_state`."""
    tensors = {name: torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8) for name, state in states.items()}
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
