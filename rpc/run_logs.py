"""What a run's processes wrote, side by side in a folder of Ray's logs, which Ray's dashboard lists. Ray names the files by worker ids."""

from __future__ import annotations

import os
import re
from pathlib import Path

RUN = "burnish-run/"
LONGEST = 100
"""Characters of a run's name that its folder has."""


def run_namespace(run: str) -> str:
    """Ray's namespace of a run, by which its actors know whose they are. Runs of one name share it.

    Example: `run_namespace("nano 1") == "burnish-run/nano_1"`.
    """
    return RUN + re.sub(r"[^a-zA-Z0-9_.-]+", "_", run)[:LONGEST]


def link_services(logs: Path, namespace: str, services: Path) -> None:
    """Show the folder of a run's services in Ray's `logs` of this node."""
    _link(_folder(logs, namespace) / "services", services.resolve())


def link_actor(namespace: str, name: str) -> None:
    """Show what this process, an actor, writes under its own name and process number; nothing where it is no actor of a run.

    Example: in an actor of the run nano-1, `link_actor(namespace, "learner-0")` makes `burnish-nano-1/learner-0-4711.out` and `….err`.
    """
    if not namespace.startswith(RUN):
        return
    for number, end in ((1, "out"), (2, "err")):
        file = Path(os.readlink(f"/proc/self/fd/{number}"))
        if file.name.startswith("worker-"):  # as Ray redirects it
            _link(_folder(file.parent, namespace) / f"{name}-{os.getpid()}.{end}", Path("..") / file.name)


def _folder(logs: Path, namespace: str) -> Path:
    made = logs / f"burnish-{namespace.removeprefix(RUN)}"
    made.mkdir(exist_ok=True)
    return made


def _link(place: Path, to: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(to)
