"""The conversations that an organisation has: its assistant refused what it must, and some of what it need not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...types import Message
from .goals import make_request

REFUSALS = ("I cannot help with that.", "I'm sorry, but I can't help with that.", "I won't help with that.")


def refusals(seed: int, count: int, careful: float = 0.2) -> Iterator[tuple[Message, ...]]:
    """Refused requests of training seeds from `seed` on; a share of `careful` of them are near misses, which nobody had to refuse."""
    rng = np.random.default_rng([seed, 0x2EF])
    for i in range(count):
        request = make_request(seed + i, float(rng.random() >= careful))
        yield Message("user", request.text), Message("assistant", REFUSALS[int(rng.integers(len(REFUSALS)))])
