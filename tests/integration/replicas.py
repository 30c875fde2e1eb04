"""The processes of a deployment's versions, which Ray Serve started below this one."""

from __future__ import annotations

from contextlib import suppress

import psutil


def replicas_of(served: str) -> list[psutil.Process]:
    """The processes of a version's replicas, the oldest first. served: `MODEL:VERSION`."""
    found = list[tuple[float, psutil.Process]]()
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that ended meanwhile, or that nobody has waited for
            if f"ServeReplica:burnish-{served.replace(':', '@')}:" in " ".join(one.cmdline()):
                found.append((one.create_time(), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def replica_of(served: str) -> psutil.Process:
    """The process of a version's one replica."""
    (replica,) = replicas_of(served)
    return replica


def engine_of(replica: psutil.Process) -> psutil.Process:
    """The engine below a replica: it carries vLLM's title, or, where that could not be set, was spawned."""
    (engine,) = [one for one in replica.children(recursive=True) if "VLLM" in one.name() or "spawn" in " ".join(one.cmdline())]
    return engine
