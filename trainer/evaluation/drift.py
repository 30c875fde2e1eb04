"""How far a policy has moved from the base on its task: what forgetting follows more closely than the task, the size of the steps or the
algorithm (Shenfeld et al. 2025, arXiv 2509.04259)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ...envs.types import Bool, Float32, Int32
from ..playing import Fleet

EPISODES = 64
"""Answers of the base that are scored at most."""
SCORED = 8
"""Sequences in one call of the engines, whose deadline holds for all of them."""
COLUMNS = ("episode", "lengths", "token_ids", "mask", "sampler_logprobs")


def kl_to_base(fleet: Fleet, file: Path, max_context: int, vocabulary: int) -> float | None:
    """KL(base || policy) in nats per sampled token, over answers that the base sampled at temperature 1; None when `file` holds none.

    file: the base's sampled evaluation, as it was stored. The engines score its tokens under the weights that they hold now, and the mean
    of log p_base - log p_policy is an unbiased estimate, below 0 by chance at most. Sequences that leave no room in `max_context` are left
    out. vocabulary: how many tokens the policy knows. Raises ValueError naming the file, and the episode that does not fit it.
    """
    sequences = list(_sampled(file, max_context, vocabulary))
    if not sequences:
        return None
    differences = list[float]()
    for first in range(0, len(sequences), SCORED):
        batch = sequences[first : first + SCORED]
        scored = next(iter(fleet.score([ids for ids, _, _ in batch]).values()))
        for (_, mask, before), now in zip(batch, scored, strict=True):
            differences += (before[1:] - now)[mask[1:]].tolist()
    return math.fsum(differences) / len(differences)


def _sampled(file: Path, max_context: int, vocabulary: int) -> Iterator[tuple[Int32, Bool, Float32]]:
    """Tokens, mask and log-probabilities of each sequence of the first episodes of a file."""
    from ...rollout.store.reading import episode_columns, stored_rows, stored_sequences

    for row in islice(stored_rows(file, episode_columns(*COLUMNS), "stored episodes"), EPISODES):
        try:
            found = stored_sequences(row, vocabulary)
        except ValueError as error:
            raise ValueError(f"{file}: episode {row['episode']!r}: {error}") from None
        yield from (one for one in found if one[1].any() and len(one[0]) < max_context)
