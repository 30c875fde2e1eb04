"""A learner's tensors in buckets (`rollout/transport/buckets.py`), each rounded to an engine's dtype as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ...rollout.engine.config import Dtype
from ...rollout.transport.buckets import CARRIERS, Bucket, Span

DTYPES: Final[dict[Dtype, torch.dtype]] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The further names of each parameter that has several, by its first: the output layer of a tied model, by its embedding."""
    first: dict[int, str] = {}
    found: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            found[known] = (*found.get(known, ()), name)
    return found


class Memory:
    """What every bucket of a learner is written into. It is kept from one snapshot to the next: fresh pages cost more than filling them."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def at_least(self, nbytes: int, carrier: np.dtype[Any], pinned: bool) -> np.ndarray:
        """Room for so many bytes, in elements of a type. What earlier calls gave is overwritten through it. pinned: in pages that a GPU
        writes to by itself, several times as fast."""
        if len(self._bytes) < nbytes:
            self._bytes = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy() if pinned else np.empty(nbytes, np.uint8)
        return self._bytes[: len(self._bytes) // 8 * 8].view(carrier)


def in_buckets(named: Iterator[tuple[tuple[str, ...], Tensor]], dtype: Dtype, limit: int, keep: bool, kept: Memory) -> Iterator[Bucket]:
    """Tensors under their names in buckets of at most `limit` bytes, or one tensor, which is rounded to the nearest number of `dtype`.

    All buckets have one memory, so the data of one is overwritten when the next is asked for. keep: whether to fill any; else they are
    empty, and there are as many.
    """
    carrier = CARRIERS[dtype]
    memory, spans, used = np.empty(0, carrier), list[Span](), 0
    for names, tensor in named:
        size = tensor.numel()
        if used and (used + size) * carrier.itemsize > limit:
            yield Bucket(tuple(spans), memory[:used]) if keep else Bucket((), memory)
            spans, used = [], 0
        if keep:
            if used + size > len(memory):  # the first bucket's, or that of a tensor larger than any bucket
                assert used == 0, "a bucket does not grow"
                memory = kept.at_least(max(size * carrier.itemsize, limit) + 8, carrier, tensor.is_cuda)
            rounded = tensor.reshape(-1).to(DTYPES[dtype]) if tensor.is_cuda else tensor.reshape(-1)  # a CPU rounds while it copies
            _view(memory[used : used + size], dtype).copy_(rounded)
        spans.append(Span(names, tuple(tensor.shape), used))
        used += size
    yield Bucket(tuple(spans), memory[:used]) if keep else Bucket((), memory)


def _view(data: np.ndarray, dtype: Dtype) -> Tensor:
    bits = data.view(f"i{data.itemsize}")
    return torch.from_numpy(bits).view(DTYPES[dtype])
