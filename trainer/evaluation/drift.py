"""How far a policy has moved from the base on its task: what forgetting follows more closely than the task, the size of the steps or the
algorithm (Shenfeld et al. 2025, arXiv 2509.04259)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...envs.types import Float32, Int32
from ..loop import Fleet

EPISODES = 64
"""Answers of the base that are scored at most."""
SCORED = 8
"""Sequences in one call of the engines, whose deadline holds for all of them."""
COLUMNS = ["lengths", "token_ids", "mask", "sampler_logprobs"]


def kl_to_base(fleet: Fleet, file: Path, max_context: int) -> float | None:
    """KL(base || policy) in nats per sampled token, over answers that the base sampled at temperature 1; None when `file` holds none.

    file: the base's sampled evaluation, as it was stored. The engines score its tokens under the weights that they hold now, and the mean
    of log p_base - log p_policy is an unbiased estimate, below 0 by chance at most. Sequences that leave no room in `max_context` are left
    out.
    """
    sequences = list(_sampled(file, max_context))
    if not sequences:
        return None
    differences = list[float]()
    for first in range(0, len(sequences), SCORED):
        batch = sequences[first : first + SCORED]
        scored = next(iter(fleet.score([ids for ids, _, _ in batch]).values()))
        for (_, mask, before), now in zip(batch, scored, strict=True):
            differences += (before[1:] - now)[mask[1:]].tolist()
    return math.fsum(differences) / len(differences)


def _sampled(file: Path, max_context: int) -> Iterator[tuple[Int32, Any, Float32]]:
    """Tokens, mask and log-probabilities of each sequence of the first episodes of a file."""
    import pyarrow.parquet as pq

    for row in pq.read_table(file, columns=COLUMNS).slice(0, EPISODES).to_pylist():
        ends = np.cumsum(row["lengths"] or [])[:-1]
        arrays = (
            np.split(np.array(row[name] or (), kind), ends)
            for name, kind in (("token_ids", np.int32), ("mask", np.bool_), ("sampler_logprobs", np.float32))
        )
        for ids, mask, logprobs in zip(*arrays, strict=True):
            if mask.any() and len(ids) < max_context:
                yield ids, mask, logprobs
