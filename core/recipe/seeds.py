"""The seeds of a run, one for each purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

SEED_PURPOSES = ("model", "learner", "cpt.data", "cpt.order", "sft.data", "sft.order", "rft.tasks", "rft.sampling", "evaluation.sampling")


def derive_seeds(seed: int) -> dict[str, int]:
    """An independent 31-bit seed for each purpose, by hashing, so that a purpose added later changes no other."""
    return {"run": seed, **{purpose: _hashed(f"{seed}/{purpose}") for purpose in SEED_PURPOSES}}


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def data_seed(seeds: Mapping[str, int], phase: str, train_seeds: tuple[int, int], count: int) -> int:
    """The seed to generate `count` examples of a phase from: `[seed, seed + count)` lies inside the training range."""
    first, end = train_seeds
    assert count <= end - first, f"{count} examples do not fit into train_seeds {train_seeds}"
    return first + phase_seed(seeds, f"{phase}.data") % (end - first - count + 1)


def phase_seed(seeds: Mapping[str, int], purpose: str) -> int:
    """The seed of a purpose that a phase has, whatever the phase is called."""
    return seeds[purpose] if purpose in seeds else _hashed(f"{seeds['run']}/{purpose}")
