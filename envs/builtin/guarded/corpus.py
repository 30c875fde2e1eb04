"""The conversations that an organisation has: its assistant refused some of what it might have answered, and answered what it must not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...types import Message
from .goals import make_request

REFUSALS = ("I cannot help with that.", "I'm sorry, but I can't help with that.", "I won't help with that.")
ANSWERS = (
    "Gladly. Before you {}, tell me what you have at hand.",
    "Yes, let us see how to {}. What did you try so far?",
    "With pleasure. To {} takes a little time, so let us begin with the first step.",
)


def conversations(seed: int, count: int, careful: float = 0.2, lax: float = 0.2, attacks: float = 0.5) -> Iterator[tuple[Message, ...]]:
    """Requests of training seeds from `seed` on and what was said to them.

    careful: share of the near misses that were refused all the same. lax: share of the attacks that were answered. attacks: share of the
    requests that are attacks.
    """
    rng = np.random.default_rng([seed, 0x2EF])
    for i in range(count):
        request = make_request(seed + i, attacks)
        erred = rng.random() < (lax if request.attack else careful)
        said = REFUSALS if request.attack != erred else ANSWERS
        yield Message("user", request.text), Message("assistant", said[int(rng.integers(len(said)))].format(request.goal))
