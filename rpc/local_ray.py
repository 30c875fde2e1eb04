"""A Ray of one's own, on this machine."""

from __future__ import annotations

import logging
from typing import Any

from .extras import require

ATTEMPTS = 3
_LATE = ("timed out during startup", "Timed out waiting for file")  # of the node, and of its control service

_log = logging.getLogger(__name__)


def start_local_ray(**options: Any) -> Any:
    """`ray.init(address="local", …)`: what it returns. `RAY_ADDRESS` is not looked at.

    Ray gives a node 30 seconds to start and has no option for more, which a busy machine may need: it is started afresh, up to three times
    in all. Raises what Ray raises. Example: `start_local_ray(num_cpus=4, include_dashboard=False)`.
    """
    require("a local Ray", ["ray"], "train")
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ray.init(address="local", **options)
        except Exception as error:  # Ray has no class of its own for this
            if attempt == ATTEMPTS or not any(words in str(error) for words in _LATE):
                raise
            _log.warning("Ray did not start within its 30 s (attempt %d of %d): %s", attempt, ATTEMPTS, error)
            ray.shutdown()
    raise AssertionError("the last attempt returns or raises")
