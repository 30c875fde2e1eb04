"""What the console page shows of deployments and services that somebody named to it: where they are, what they serve, how they are.

Whoever starts the pages says what to watch, on the command line or in the recipe of the run; nothing in a run folder does. How an address
is asked is theirs too (`WatchedPlaces.look`): this room reaches nothing over a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

HealthState = Literal["healthy", "unhealthy", "unreachable", "unknown"]


@dataclass(frozen=True, slots=True)
class Health:
    """How a place is. said: why, in words, of one that is not healthy. seconds: until it answered, None when it did not."""

    state: HealthState
    said: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version of a model in a deployment's file. name: that it is served under. share: of its model's callers, in [0, 1]. shadow: the
    share whose requests it gets a copy of. replicas: as words. notes: what else the file says, a judge or adapters among it."""

    name: str
    model: str
    share: float
    shadow: float
    replicas: str
    notes: tuple[str, ...] = ()
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class WatchedPlace:
    """A deployment or a service now. name: its file or its address. url: what was asked. metrics: the address of what Prometheus scrapes,
    "" where there is none. problem: why its file cannot be read; then the rest is empty.

    Example: `WatchedPlace("http://127.0.0.1:8000", Health("healthy", seconds=0.01), "http://127.0.0.1:8000", metrics=".../metrics")`.
    """

    name: str
    health: Health
    url: str = ""
    metrics: str = ""
    versions: tuple[VersionLine, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WatchedPlaces:
    """What a console watches. look: how all of it is now; it returns within seconds, whatever the places do. why: who named it, a
    sentence."""

    look: Callable[[], Sequence[WatchedPlace]]
    why: str = ""
