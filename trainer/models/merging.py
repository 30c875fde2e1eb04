"""Merging two checkpoints into one, tensor by tensor, in float32.

Merging averages what two trainings of one base learnt; it does not train. It keeps what it should only while both stay close to where they
parted, so measure the result as any checkpoint (`burnish evaluate`) before it is used. torch is imported when a merge is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ...envs.registry import did_you_mean
from ...rollout.writing import writing
from .finding import MODELS, verified_model
from .folder import WEIGHTS_FILE, Origin, atomic_folder, copy_model_files, manifest_of, read_json, write_manifest
from .importing import no_progress_bars, verify_model
from .manifest import STAGES, Manifest, file_sha256

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["linear", "slerp", "task-arithmetic"]
METHODS: tuple[Method, ...] = get_args(Method)
SHAPE = (
    "architectures",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
"""What of their configs two models must share to be merged; the tensors' shapes are compared as well."""
PARALLEL = 1e-4
"""Angle in radians below which a spherical interpolation is a straight one."""


def merge_models(
    first: str | Path,
    second: str | Path,
    out: Path,
    *,
    method: Method = "linear",
    weight: float = 0.5,
    base: str | Path | None = None,
    models_dir: Path = MODELS,
) -> Manifest:
    """Write the merge of two models to `out`, with the tokenizer and config of the first; both, and the base, are its parents.

    weight: of "linear" and "slerp" (Shoemake 1985), the second's share, from 0 to 1: `(1 - weight) first + weight second`, on a straight
    line or on the arc between the two directions of each tensor. Of "task-arithmetic" (Ilharco et al. 2022, arXiv 2212.04089), what both
    differences from the base are multiplied with: `base + weight ((first - base) + (second - base))`.

    Needs memory for one model. Raises ValueError when a model is not sound, the models have other shapes or tokenizers, a base is missing
    or has no effect, or the result fails `verify_model`.
    """
    if (base is not None) != (method == "task-arithmetic"):
        raise ValueError(f"method {method} {'needs a base' if base is None else 'takes no base'}: what both models were made from")
    if not 0 <= weight <= (1 if base is None else 2):
        raise ValueError(f"weight {weight:g} must be from 0 to {1 if base is None else 2} for method {method}")
    folders = [verified_model(model, models_dir) for model in (first, second, *([base] if base is not None else []))]
    for other in folders[1:]:
        _check_alike(folders[0], other)
    parents = [manifest_of(folder) for folder in folders]
    with atomic_folder(out) as draft, no_progress_bars():
        copy_model_files(folders[0], draft)
        _write_merged(folders, draft / WEIGHTS_FILE, _mixer(method, weight))
        stage = max((parent.stage for parent in parents[:2]), key=STAGES.index)
        named = " + ".join(parent.name for parent in parents)
        origin = Origin(
            name=out.name,
            stage=stage,
            source=f"merge:{method} weight={weight:g} of {named}",
            parents=parents,
            template_args=parents[0].template_args,
        )
        manifest = write_manifest(draft, origin)
        verify_model(draft)
    return manifest


def method_called(name: str) -> Method:
    """The method of a name. Raises ValueError for one that is none."""
    found = [method for method in METHODS if method == name]
    if not found:
        raise ValueError(f"merge method {name!r} is unknown{did_you_mean(name, list(METHODS))}")
    return found[0]


def linear(weight: float, first: Tensor, second: Tensor) -> Tensor:
    """`(1 - weight) first + weight second`."""
    return (1 - weight) * first + weight * second


def slerp(weight: float, first: Tensor, second: Tensor) -> Tensor:
    """Along the arc between two tensors taken as vectors; along the line where they point the same way, or one is zero."""
    import torch

    lengths = first.norm() * second.norm()
    if not lengths:
        return linear(weight, first, second)
    angle = torch.arccos(((first * second).sum() / lengths).clamp(-1.0, 1.0))
    if angle < PARALLEL or torch.pi - angle < PARALLEL:
        return linear(weight, first, second)
    return (torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second) / torch.sin(angle)


def task_arithmetic(weight: float, first: Tensor, second: Tensor, base: Tensor) -> Tensor:
    """`base + weight ((first - base) + (second - base))`."""
    return base + weight * (first + second - 2 * base)


def _mixer(method: Method, weight: float) -> Callable[..., Tensor]:
    mixers: dict[Method, Callable[..., Tensor]] = {"linear": linear, "slerp": slerp, "task-arithmetic": task_arithmetic}
    return partial(mixers[method], weight)


def _write_merged(folders: list[Path], out: Path, mix: Callable[..., Tensor]) -> None:
    from safetensors.torch import save_file

    from .tensors import Tensors

    sources = [Tensors(folder) for folder in folders]
    merged = {}
    for name in sources[0].names:
        tensors = [source.read(name) for source in sources]
        merged[name] = mix(*(tensor.float() for tensor in tensors)).to(tensors[0].dtype).contiguous()
    with writing(out):
        save_file(merged, out, metadata={"format": "pt"})


def _check_alike(first: Path, other: Path) -> None:
    from .tensors import Tensors

    configs = [read_json(folder / "config.json") for folder in (first, other)]
    for key in SHAPE:
        values = [config.get(key) for config in configs]
        if values[0] != values[1]:
            raise ValueError(f"{first} and {other} cannot be merged: {key} is {values[0]} and {values[1]}; merge models of one base")
    if file_sha256(first / "tokenizer.json") != file_sha256(other / "tokenizer.json"):
        raise ValueError(f"{first} and {other} cannot be merged: their tokenizers differ, so their embeddings mean other tokens")
    shapes = [Tensors(folder).shapes for folder in (first, other)]
    odd = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    if odd:
        raise ValueError(f"{first} and {other} cannot be merged: {odd[0]} is not of one shape in both; merge models of one base")
