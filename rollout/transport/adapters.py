"""Adapters that travel alone: the engine's side merges them into the base, which it reads from its own model folder.

A merged layer is `W + scale B A` in float32, rounded to the engine's dtype as it is loaded, as a learner does that sends the whole model
(`trainer/learner/lora.py`). What an engine then holds follows from two things that are proved by checksums of the learner's: every tensor
of the adapters, at each update, and every tensor of the base, once in a process's life and again when one of its files was rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, slots=True)
class _Held:
    """A file of the base that stays open. stored: what safetensors has of it, which is there whatever becomes of its name in the folder.
    inode: of what was opened. stamp: its size, and when it was last written, in nanoseconds."""

    file: Path
    stored: Any
    inode: int
    stamp: tuple[int, int]

    @property
    def rewritten(self) -> bool:
        """Whether what was opened was written since. A file that is gone, or has another in its place, was not."""
        try:
            now = self.file.stat()
        except FileNotFoundError:
            return False
        return now.st_ino == self.inode and (now.st_size, now.st_mtime_ns) != self.stamp


class Base:
    """The base in an engine's model folder. dtype: the engine's.

    Its files are opened at the first update and stay open, so that what was proved is what is merged, though the folder is removed or has
    another model by then.
    """

    def __init__(self, folder: Path, dtype: Dtype) -> None:
        self._folder, self._dtype = folder, dtype
        self._held: tuple[_Held, ...] = ()
        self._proved: Mapping[str, str] | None = None

    def check(self, frozen: Frozen) -> None:
        """Hold the folder to the learner's base. Raises ValueError naming the tensors that are others, or are not there."""
        rewritten = any(one.rewritten for one in self._held)
        if self._proved == frozen.manifest and not rewritten:
            return
        if self._proved is None or rewritten:
            self._proved, self._held = None, ()  # closed before they are opened again: a file that is shorter now cannot be read as it was
            self._held = tuple(map(_opened, sorted(self._folder.glob("*.safetensors"))))
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

        adapters: float32 arrays by the names of their layers with `A` and `B`. Raises ValueError for one of no layer, and when a file of
        the base was rewritten since it was checked.
        """
        import torch

        from ..engine.vllm_base import as_array

        assert self._proved is not None, "what is merged was checked before"
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
        for one in self._held:
            if one.rewritten:
                raise ValueError(f"{one.file} was rewritten while an engine read it; leave the model of a run as it is until the run ends")

    def _tensors(self, frozen: Frozen) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """The base's tensors in float32, those of several names once, whichever of them the folder has."""
        import torch

        groups = {name: names for names in frozen.names for name in names}
        for held in self._held:
            for name in held.stored.keys():  # noqa: SIM118  # it is no mapping
                names = groups.get(name)
                if names is not None:
                    for one in names:
                        del groups[one]
                    yield names, held.stored.get_tensor(name).to(torch.float32)


def _opened(file: Path) -> _Held:
    from safetensors import safe_open

    now = file.stat()  # before it is opened: what is written after this is seen as such
    return _Held(file, safe_open(file, framework="pt"), now.st_ino, (now.st_size, now.st_mtime_ns))


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
