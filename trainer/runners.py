"""Env runners at their start and at their end, where RLlib's own way waits without end: for room, for engines, for one that hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

log = logging.getLogger("burnish.trainer.runners")

LOOK_S = 1.0
"""Between two looks at which runners the cluster has placed."""


class FleetError(RuntimeError):
    """A runner did not start or stayed away, or none has finished anything for too long."""


@dataclass(frozen=True, slots=True)
class StartLimits:
    """What the start of runners may take, in seconds. place_s: until the cluster has room for all of their processes. start_s: for each
    from then on, its engine included.

    Example: `StartLimits(place_s=600, start_s=660)`.
    """

    place_s: float
    start_s: float


def await_runners(actors: Mapping[int, Any], each: Mapping[str, float], limits: StartLimits) -> None:
    """Wait until all runners, by their number, have been started. each: what one asks of the cluster, in Ray's words.

    Raises FleetError saying what is short when the cluster has no room for them in time, or which is not up by then; and what ended the
    first that did not start: ValueError when the user can put it right, FleetError otherwise.
    """
    waiting = {actor.ping.remote(): index for index, actor in actors.items()}
    began, placed = time.monotonic(), dict[int, float]()
    while waiting:
        answered, _ = ray.wait(list(waiting), timeout=LOOK_S)
        for call in answered:
            index = waiting.pop(call)
            if not _has_started(index, call):
                time.sleep(LOOK_S)
                waiting[actors[index].ping.remote()] = index
        now = time.monotonic()
        placed |= {index: now for index in waiting.values() if index not in placed and has_process(actors[index])}
        without = [index for index in waiting.values() if index not in placed]
        if without and now - began > limits.place_s:
            raise FleetError(_no_room(len(without), len(actors), each, limits.place_s))
        late = [index for index in waiting.values() if now - placed.get(index, now) > limits.start_s]
        if late:
            raise FleetError(
                f"rollout-{late[0]} did not start: after {limits.start_s:g} s its process is still starting, for the first time or again "
                "after it died; see the logs of Ray, and engine.start_timeout_s"
            )


def _has_started(index: int, call: Any) -> bool:
    """Whether a runner is up; not one that died on the way, which Ray starts again. Raises what ended one for good."""
    try:
        ray.get(call, timeout=LOOK_S)
        return True
    except ActorUnavailableError:
        return False
    except RayActorError as died:
        last = last_line(died)
        name, _, text = last.partition(": ")
        if name.rpartition(".")[2] == "ValueError":
            raise ValueError(text) from died
        raise FleetError(f"rollout-{index} did not start: {last}") from died
    except RayError as error:
        raise FleetError(f"rollout-{index} did not start: {last_line(error)}") from error


def has_process(actor: Any) -> bool:
    """Whether the cluster has given an actor a process: only Ray's own books tell that before it answers."""
    return bool(ray._private.state.actors(actor._actor_id.hex()).get("Pid"))


def _no_room(without: int, runners: int, each: Mapping[str, float], place_s: float) -> str:
    free = ray.available_resources()
    left = {name: free.get(name, 0.0) for name in each}
    return (
        f"the cluster had no room for {without} of {runners} engines of {_amounts(each)} each within limits.place_s = {place_s:g} s; free "
        f"now, on all nodes together: {_amounts(left)}. Lower resources.env_runners, or wait for whoever has the rest"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


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
