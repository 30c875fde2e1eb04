"""Marks in Ray's timeline (`ray timeline`): what the process that drives a run was at, above the tasks of its actors."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any


def mark(kind: str, what: str = "") -> AbstractContextManager[Any]:
    """The block is a mark, `KIND WHAT`, of the category `burnish.KIND`; nothing where this process belongs to no Ray. A mark takes
    a microsecond. Of a block that raises, the mark says the error.

    Ray 2.60 has no public call for it: this is what its own marks are made with. It keeps the latest thousand of a process.

    Example: `with mark("checkpoint", "rft-40"): …`.
    """
    ray = sys.modules.get("ray")  # what has not imported it belongs to none
    if ray is None or not ray.is_initialized():
        return nullcontext()
    marked: AbstractContextManager[Any] = ray._private.worker.global_worker.core_worker.profile_event(
        f"burnish.{kind}".encode("ascii"), {"name": f"{kind} {what}".strip()}
    )
    return marked
