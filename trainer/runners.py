"""Env runners at their end: every one closes what it holds, or is killed. RLlib's own way waits for them without end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

log = logging.getLogger("burnish.trainer.runners")


def end_runners(actors: Mapping[int, Any], close_s: float) -> None:
    """Have all runners, by their number, close engine and environments. Who has not within `close_s` seconds is left to be killed, and the
    log says so; it says too what went wrong with who has."""
    calls = {actor.stop.remote(): index for index, actor in actors.items()}
    if not calls:
        return
    ended, late = ray.wait(list(calls), num_returns=len(calls), timeout=close_s)
    for call in late:
        log.warning("rollout-%d has not ended within %g s: it is killed", calls[call], close_s)
    for call in ended:
        try:
            ray.get(call, timeout=close_s)
        except RayError as error:
            log.warning("rollout-%d did not end well: %s", calls[call], last_line(error))


def last_line(error: Exception) -> str:
    """What Ray says of an error, without the traceback before it."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
