"""Which tensors a whole model has: what a weight update must bring, no more and no less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from .base import GenerateRequest

Shapes = Mapping[str, tuple[int, ...]]

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
OUTPUT_HEAD = "lm_head.weight"

MIN_TEMPERATURE = 0.01
"""Below this, vLLM silently raises the temperature."""

BLOCK = 1 << 17
"""Words of a tensor that are summed at a time, while they are in the processor's cache."""

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""How numpy, which has no such type, carries numbers of it: their two bytes, under that name."""


def checkpoint_shapes(model_path: Path, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor in a Hugging Face folder's safetensors files, read from their headers.

    A tied model's `lm_head.weight` is listed too, for engines keep a copy of their own. Raises ValueError when the folder has no
    safetensors or the tied embedding cannot be found.
    """
    from safetensors import safe_open

    files = sorted(Path(model_path).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{model_path} has no *.safetensors file; import the model first (burnish models import)")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="np") as checkpoint:
            shapes |= {name: tuple(checkpoint.get_slice(name).get_shape()) for name in checkpoint.keys()}  # noqa: SIM118  (no mapping)
    if tied and OUTPUT_HEAD not in shapes:
        embedding = [name for name in shapes if name.endswith(EMBEDDINGS)]
        if len(embedding) != 1:
            raise ValueError(f"{model_path}: the embedding that its tied output head shares is none of {', '.join(EMBEDDINGS)}")
        shapes[OUTPUT_HEAD] = shapes[embedding[0]]
    return shapes


def check_shapes(announced: Shapes, expected: Shapes, engine: str) -> None:
    """Raise ValueError unless exactly the tensors `expected` are announced, in their shapes."""
    missing, unknown = sorted(expected.keys() - announced.keys()), sorted(announced.keys() - expected.keys())
    common = sorted(expected.keys() & announced.keys())
    wrong = [f"{name} {announced[name]} for {expected[name]}" for name in common if announced[name] != expected[name]]
    kinds = {"missing": missing, "unknown": unknown, "wrong shape": wrong}
    problems = [f"{kind} {', '.join(names[:5])}" for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(
            f"weight update of engine {engine}: {len(announced)} tensors announced, {len(expected)} expected ({'; '.join(problems)}); "
            "send the learner's whole state_dict, lm_head.weight of tied models included"
        )


def dtype_name(array: np.ndarray) -> str:
    """What torch calls its type."""
    return "bfloat16" if array.dtype == BFLOAT16 else str(array.dtype)


def checksum(array: np.ndarray) -> str:
    """Type, shape, and two sums over the contents as 64-bit words, modulo 2^64: of the words, and of each times its place (Fletcher 1982).

    What changes a word changes the first, what exchanges two the second. About 0.1 s for 0.5 GB, a third of what CRC-32 takes.

    Example: `float32[256,64]:` and 32 hexadecimal digits.
    """
    contents = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(contents) // 8 * 8
    rest = int.from_bytes(contents[whole:].tobytes(), "little")
    total, placed = rest, rest * (whole // 8)
    words, places = contents[:whole].view("<u8"), _places()
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK]
        here = int(block.sum())
        total, placed = total + here, placed + start * here + int(np.dot(block, places[: len(block)]))
    return f"{dtype_name(array)}[{','.join(map(str, array.shape))}]:{total % 2**64:016x}{placed % 2**64:016x}"


@cache
def _places() -> np.ndarray:
    return np.arange(BLOCK, dtype=np.uint64)


def shapes_of(manifest: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes that a manifest's checksums say, by name."""
    return {name: shape_of(found) for name, found in manifest.items()}


def shape_of(checksum: str) -> tuple[int, ...]:
    """The shape that a checksum says: `(256, 64)` of `float32[256,64]:…`."""
    sizes = checksum[checksum.index("[") + 1 : checksum.index("]")]
    return tuple(int(size) for size in sizes.split(",")) if sizes else ()


def check_request(request: GenerateRequest, max_context: int, vocab_size: int) -> None:
    """Raise ValueError when the request could not be served as asked."""
    where, prompt = f"request {request.request_id}", request.prompt_token_ids
    if not prompt:
        raise ValueError(f"{where}: the prompt is empty")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise ValueError(f"{where}: token ids must lie in 0..{vocab_size - 1}, and the prompt has {min(prompt)}..{max(prompt)}")
    if not 1 <= request.max_tokens <= max_context - len(prompt):
        raise ValueError(
            f"{where}: {len(prompt)} prompt tokens and max_tokens {request.max_tokens} do not fit in {max_context} tokens of context; "
            f"ask for 1 to {max_context - len(prompt)}, or raise engine.max_context"
        )
    if not (math.isfinite(request.temperature) and (request.temperature == 0 or request.temperature >= MIN_TEMPERATURE)):
        raise ValueError(f"{where}: temperature {request.temperature} must be 0 (greedy) or at least {MIN_TEMPERATURE}")
