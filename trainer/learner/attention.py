"""Attention over a packed prefix tree, for any Hugging Face causal language model that takes its attention from `AttentionInterface`.

Everything but attention runs on the packed row `[1, N]` as it is. Attention gathers the keys and values of each segment's ancestors and
its own, and does one of two things, which give the same up to rounding:

    blocks   a few padded blocks of segments of like shape through PyTorch's scaled dot product attention: everywhere
    ragged   all segments as they are through one variable-length flash kernel: on GPUs, in 16 bit

No `[N, N]` mask is ever made: transformers makes none for an attention function that registers no mask function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from .packing import Segment, path_index

NAME = "burnish_packed"

MAX_PADDING = 1.25
"""Padded over real query-key pairs, above which segments go to a new block…"""
FREE_PADDING = 2**15
"""…unless the padding is fewer pairs than this: another block costs more than they do."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments by which a model asks for attention other than plain scaled dot product."""


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """S segments padded to C queries and K keys.

    query_index `[S * C]` and key_index `[S * K]`: int64, packed indices, padding points at packed token 0 (its result is not
    read). mask: `[S, 1, C, K]`, 0 or -inf, or None where plain causal attention does (C = K, no ancestors).
    """

    segments: int
    query_index: Tensor
    key_index: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class RaggedSegments:
    """S segments one after the other, without padding: their queries are the packed tokens in their order.

    key_index: int64 `[K]`, the packed tokens that each segment sees, segment after segment. query_ends, key_ends: int32 `[S + 1]`, where
    each begins, and the end. longest_queries, longest_keys: of a segment.
    """

    key_index: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_queries: int
    longest_keys: int


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """How to attend over N packed tokens: ragged, or else blocks, and where token n lies in their concatenated padded outputs, int64 `[N]`.

    longest: tokens on the longest path, to compare with a model's sliding window. dtype: of queries, keys and values.
    """

    blocks: tuple[AttentionBlock, ...]
    unpad: Tensor
    longest: int
    dtype: torch.dtype
    ragged: RaggedSegments | None = None


def ragged_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the flash kernel computes attention there: it is CUDA's alone, in 16 bit, for heads of at most 256 numbers."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256 and head_dim % 8 == 0


def make_layout(segments: Sequence[Segment], device: torch.device, dtype: torch.dtype, ragged: bool = False) -> AttentionLayout:
    """The layout for a tree of segments; `dtype` is that of queries and keys in the forward pass. ragged: see `ragged_attention`."""
    longest = max(s.context + s.length for s in segments)
    if ragged:
        return AttentionLayout((), torch.empty(0, dtype=torch.int64), longest, dtype, _ragged(segments, device))
    blocks: list[AttentionBlock] = []
    total = sum(segment.length for segment in segments)
    unpad = np.empty(total, np.int64)
    offset = 0
    for members in _blocks_of(segments):
        c = max(segments[i].length for i in members)
        k = max(segments[i].context + segments[i].length for i in members)
        queries, keys = np.zeros((len(members), c), np.int64), np.zeros((len(members), k), np.int64)
        for row, i in enumerate(members):
            segment = segments[i]
            queries[row, : segment.length] = np.arange(segment.start, segment.start + segment.length)
            keys[row, : segment.context + segment.length] = path_index(segments, (*segment.ancestors, i))
            unpad[segment.start : segment.start + segment.length] = offset + row * c + np.arange(segment.length)
        contexts = torch.tensor([segments[i].context for i in members])
        query_index, key_index = (torch.from_numpy(index.ravel()).to(device) for index in (queries, keys))
        blocks.append(AttentionBlock(len(members), query_index, key_index, _mask(contexts, c, k, device, dtype)))
        offset += len(members) * c
    return AttentionLayout(tuple(blocks), torch.from_numpy(unpad).to(device), longest, dtype)


def _ragged(segments: Sequence[Segment], device: torch.device) -> RaggedSegments:
    keys = [path_index(segments, (*segment.ancestors, i)) for i, segment in enumerate(segments)]
    lengths = ([segment.length for segment in segments], [len(key) for key in keys])
    query_ends, key_ends = (torch.from_numpy(np.cumsum([0, *each]).astype(np.int32)).to(device) for each in lengths)
    key_index = torch.from_numpy(np.concatenate(keys).astype(np.int64)).to(device)
    return RaggedSegments(key_index, query_ends, key_ends, max(lengths[0]), max(lengths[1]))


def _blocks_of(segments: Sequence[Segment]) -> list[list[int]]:
    """Segments of like shape together: longest first, a new block where padding would exceed the bounds above."""
    order = sorted(range(len(segments)), key=lambda i: (bool(segments[i].context), segments[i].length, segments[i].context), reverse=True)
    blocks: list[list[int]] = []
    c = k = pairs = 0
    for i in order:
        length, keys = segments[i].length, segments[i].context + segments[i].length
        padded = (len(blocks[-1]) + 1) * max(c, length) * max(k, keys) if blocks else 0
        wanted = pairs + length * keys
        same_kind = bool(blocks) and bool(segments[blocks[-1][0]].context) == bool(segments[i].context)
        if same_kind and padded <= max(MAX_PADDING * wanted, wanted + FREE_PADDING):
            blocks[-1].append(i)
            c, k, pairs = max(c, length), max(k, keys), wanted
        else:
            blocks.append([i])
            c, k, pairs = length, keys, length * keys
    return blocks


def _mask(contexts: Tensor, c: int, k: int, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Query i of a segment sees the keys 0 … context + i. Key 0 is seen by all, so that padding gives no NaN."""
    if not contexts.any():
        return None
    last_seen = contexts[:, None, None, None] + torch.arange(c)[None, None, :, None]
    hidden = torch.arange(k)[None, None, None, :] > last_seen
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf).to(device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: AttentionLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query `[1, H, N, D]`, key and value `[1, H_kv, N, D]` to `[1, N, H, D]`."""
    assert packed_layout is not None, "pass packed_layout=make_layout(...) to the model's forward"
    assert attention_mask is None and dropout == 0.0 and query.shape[0] == 1
    _refuse_unsupported(module, packed_layout, kwargs)
    if packed_layout.ragged is not None:
        return _attend_ragged(query, key, value, packed_layout.ragged, packed_layout.dtype, scaling), None
    rows = [tensor[0].transpose(0, 1).reshape(tensor.shape[2], -1) for tensor in (query, key, value)]
    heads, kv_heads = query.shape[1], key.shape[1]
    outputs = []
    for block in packed_layout.blocks:
        q, k, v = (
            row.index_select(0, index).view(block.segments, -1, n, row.shape[1] // n).transpose(1, 2)
            for row, index, n in zip(rows, (block.query_index, *[block.key_index] * 2), (heads, kv_heads, kv_heads), strict=True)
        )
        grouped = heads != kv_heads
        if grouped and block.mask is not None and k.is_cuda:  # no kernel of CUDA's takes both but the one that keeps all scores
            k, v, grouped = *(each.repeat_interleave(heads // kv_heads, 1) for each in (k, v)), False
        out = scaled_dot_product_attention(q, k, v, attn_mask=block.mask, is_causal=block.mask is None, scale=scaling, enable_gqa=grouped)
        outputs.append(out.transpose(1, 2).reshape(-1, heads * value.shape[3]))
    packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return packed.index_select(0, packed_layout.unpad).view(1, -1, heads, value.shape[3]), None


def _attend_ragged(query: Tensor, key: Tensor, value: Tensor, ragged: RaggedSegments, dtype: torch.dtype, scaling: float | None) -> Tensor:
    """`[1, N, H, D]`. A segment's last query sees all its keys, the one before it all but the last: what the kernel calls causal."""
    q = query[0].transpose(0, 1).to(dtype).contiguous()  # rotary embeddings leave float32 where weights are float32
    k, v = (each[0].transpose(0, 1).to(dtype).index_select(0, ragged.key_index) for each in (key, value))
    out = varlen_attn(
        q, k, v, ragged.query_ends, ragged.key_ends, ragged.longest_queries, ragged.longest_keys,
        scale=scaling, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[None]


def _refuse_unsupported(module: nn.Module, layout: AttentionLayout, kwargs: dict[str, Any]) -> None:
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if asked:
        raise ValueError(f"{type(module).__name__} asks for {', '.join(asked)}, which packed attention does not compute")
    window = kwargs.get("sliding_window")
    if window is not None and layout.longest > window:
        raise ValueError(
            f"{type(module).__name__} attends over a sliding window of {window} tokens, and this batch holds a "
            f"sequence of {layout.longest}; packed attention covers sequences up to the window, so lower the rollout's max_context"
        )


def use_packed_attention(model: PreTrainedModel) -> None:
    """Switch a loaded model to `packed_attention`. Raises ValueError for an architecture that does not dispatch its attention."""
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(f"{type(model).__name__} does not take its attention from transformers' AttentionInterface, which packing needs")
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)
