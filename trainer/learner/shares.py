"""One batch over several ranks: who computes which sequences, and what they measured, put together again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...envs.types import Float32
from ..batch import TokenBatch
from ..objectives.measures import Measured

Int64 = NDArray[np.int64]


def check_trainable(batch: TokenBatch) -> None:
    """Raise ValueError when nothing of the batch is trained."""
    if batch.tokens == 0:
        raise ValueError("this batch holds no trainable token; nothing can be learned from it")


def shares(batch: TokenBatch, ranks: int) -> list[Int64]:
    """The numbers of the sequences of each rank, in order: whole groups, as even in tokens as taking the largest first makes them.

    A sequence that is of no group (-1) is a group of its own. With fewer groups than ranks some ranks get nothing.

    Example: groups of 6, 4 and 3 tokens over two ranks: the first alone, the other two together.
    """
    alone = batch.group < 0
    unit = np.where(alone, batch.group.max(initial=-1) + 1 + np.cumsum(alone), batch.group)
    _, unit = np.unique(unit, return_inverse=True)
    tokens = np.bincount(unit, batch.lengths)
    rank_of, load = np.zeros(len(tokens), np.int64), np.zeros(ranks, np.float64)
    for one in np.argsort(-tokens, kind="stable"):
        rank_of[one] = rank = int(load.argmin())
        load[rank] += tokens[one]
    return [np.flatnonzero(rank_of[unit] == rank) for rank in range(ranks)]


def merged(batch: TokenBatch, parts: Sequence[Int64], measured: Sequence[Measured]) -> Measured:
    """What each rank measured of its share, as one rank would have measured it of the whole: per-token values in their places, terms added
    up, the time of the slowest."""

    def together(values: Sequence[Float32 | None]) -> Float32:
        found = np.zeros(len(batch.mask), np.float32)
        for part, of_part in zip(parts, values, strict=True):
            if of_part is not None:
                found[np.isin(batch.sequence, part)] = of_part
        return found

    names = dict.fromkeys(name for one in measured for name in one.tokens)
    terms = dict.fromkeys(name for one in measured for name in one.terms)
    return Measured(
        together([one.logprobs for one in measured]),
        together([one.entropy for one in measured]),
        {name: together([one.tokens.get(name) for one in measured]) for name in names},
        {name: sum(one.terms.get(name, 0.0) for one in measured) for name in terms},
        sum(one.packed_tokens for one in measured),
        max(one.seconds for one in measured),
    )
