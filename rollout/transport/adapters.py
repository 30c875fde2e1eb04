"""Adapters that travel alone: the engine's side merges them into the base, which it reads from its own model folder.

A merged layer is `W + scale B A` in float32, rounded to the engine's dtype as it is loaded, as a learner does that sends the whole model
(`trainer/learner/lora.py`). What an engine then holds follows from two things that are proved by checksums of the learner's: every tensor
of the adapters, at each update, and every tensor of the base, once in a process's life.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engine.config import Dtype
from ..engine.layout import checksum, shape_of

if TYPE_CHECKING:
    from torch import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
"""What follows a layer's name in the names of its adapter, as peft stores them: A `[rank, in]`, B `[out, rank]`."""
WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Frozen:
    """The base that adapters belong to. scale: of B A. names: of each tensor, several of one that is tied. manifest: `checksum` of each in
    float32, by the first of its names.

    Example: `Frozen(2.0, (("model.embed_tokens.weight", "lm_head.weight"),), {"model.embed_tokens.weight": "float32[256,64]:…"})`.
    """

    scale: float
    names: tuple[tuple[str, ...], ...]
    manifest: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the model, by every name."""
        return {name: shape_of(self.manifest[names[0]]) for names in self.names for name in names}


class Base:
    """The base in an engine's model folder. dtype: the engine's."""

    def __init__(self, folder: Path, dtype: Dtype) -> None:
        self._folder, self._dtype = folder, dtype
        self._proved: Mapping[str, str] | None = None

    def check(self, frozen: Frozen) -> None:
        """Hold the folder to the learner's base. Raises ValueError naming the tensors that are others, or are not there."""
        if self._proved == frozen.manifest:
            return
        found = {names[0]: checksum(tensor.numpy()) for names, tensor in self._tensors(frozen)}
        others = [name for name, sum_ in frozen.manifest.items() if found.get(name) != sum_]
        if others:
            raise ValueError(
                f"{self._folder}: {len(others)} of {len(frozen.manifest)} tensors are not those of the base of the learner's adapters "
                f'({", ".join(others[:3])}); give engines and learner the same model, or write engine.adapters = "merged"'
            )
        self._proved = frozen.manifest

    def merged(self, frozen: Frozen, adapters: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor of the merged model under each of its names, in the engine's dtype, one after the other.

        adapters: float32 arrays by the names of their layers with `A` and `B`. Raises ValueError for one of no layer.
        """
        import torch

        from ..engine.vllm_base import as_array

        left = {name.removesuffix(A).removesuffix(B) for name in adapters}
        for names, tensor in self._tensors(frozen):
            layer = names[0].removesuffix(WEIGHT)
            if layer in left:
                left.remove(layer)
                a, b = (torch.from_numpy(np.array(adapters[layer + which])) for which in (A, B))
                tensor = torch.addmm(tensor, b, a, alpha=frozen.scale)
            array = as_array(tensor.to(getattr(torch, self._dtype)))
            for name in names:
                yield name, array
        if left:
            raise ValueError(f"{self._folder} has no layer {', '.join(sorted(left)[:3])}, of which adapters came")

    def _tensors(self, frozen: Frozen) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """The base's tensors in float32, those of several names once, whichever of them the folder has."""
        import torch
        from safetensors import safe_open

        groups = {name: names for names in frozen.names for name in names}
        for file in sorted(self._folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118  # it is no mapping
                    names = groups.get(name)
                    if names is not None:
                        for one in names:
                            del groups[one]
                        yield names, stored.get_tensor(name).to(torch.float32)


def checked(tensors: Sequence[tuple[str, np.ndarray]], manifest: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Adapters as they came, by name. Raises ValueError unless they are those that the learner made."""
    found = dict(tensors)
    wrong = sorted(name for name in found.keys() | manifest.keys() if name not in found or checksum(found[name]) != manifest.get(name))
    if wrong:
        raise ValueError(
            f"the adapters of {', '.join(wrong[:3])} did not come as the learner sent them ({len(wrong)} tensors); check the memory and "
            "transport between them, then resume from the last checkpoint"
        )
    return found
