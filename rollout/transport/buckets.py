"""Weights in buckets: tensors one after the other in a flat array of bounded size, so that no process holds the model a second time.

A learner makes one bucket after the other, each in the engine's dtype; what several names share (the embedding and output layer of a tied
model) is in it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..engine.config import Dtype
from ..engine.layout import BFLOAT16, checksum

BUCKET_BYTES = 128 * 2**20
"""Of a bucket at most, unless a single tensor is larger: that has one for itself."""

CARRIERS: Mapping[Dtype, np.dtype] = MappingProxyType(
    {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": BFLOAT16}
)
"""The numpy type that carries numbers of each dtype."""


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor in a bucket: its names under Hugging Face's `state_dict`, its shape, and where it begins, in elements.

    Example: `Span(("model.embed_tokens.weight", "lm_head.weight"), (256, 64), 0)`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some of a model's tensors. data: `[elements]` of a carrier type, filled without a gap by the spans in their order.

    Example: `Bucket((Span(("a",), (2, 3), 0), Span(("b",), (4,), 6)), np.zeros(10, np.float32))`.
    """

    spans: tuple[Span, ...]
    data: np.ndarray

    def tensor(self, span: Span) -> np.ndarray:
        """A view, in its shape."""
        return self.data[span.start : span.start + span.size].reshape(span.shape)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor under each of its names, as a view."""
        for span in self.spans:
            for name in span.names:
                yield name, self.tensor(span)

    def manifest(self) -> dict[str, str]:
        """`checksum` of every tensor, under each of its names."""
        return {name: sum_ for span in self.spans for name, sum_ in dict.fromkeys(span.names, checksum(self.tensor(span))).items()}
