"""Which runs there are: folders with a config.json in one place."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...rollout.store.sole_driver import is_driven
from ..runs import check_run

LIVE_S = 90.0
"""A run that wrote something so lately, and has no report yet, counts as under way where its lock does not tell."""
LAST_S = 253_402_300_799
"""The last second that has a date: a file's time may be any."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in the list. name: what its folder is called, as UTF-8. changed: when it last wrote, Unix seconds. live: whether it goes
    on."""

    name: str
    path: Path
    changed: float
    live: bool

    @property
    def age(self) -> str:
        """Example: "3 min ago"."""
        seconds = max(0.0, time.time() - self.changed)
        for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
            if seconds >= size:
                return f"{int(seconds // size)} {unit} ago"
        return "now"

    @property
    def written(self) -> str:
        """Example: "2026-01-01 12:00 UTC"."""
        return datetime.fromtimestamp(min(max(self.changed, 0.0), LAST_S), UTC).strftime("%Y-%m-%d %H:%M UTC")


def list_runs(root: Path) -> list[RunLine]:
    """The runs in a folder, or the one that it is, the latest first. Links are left out: they may lead anywhere. So is what
    cannot be looked at: another user's, or what is gone meanwhile."""
    folders = [root] if _is_run(root) else sorted(root.iterdir()) if root.is_dir() else []
    found = [_line(folder) for folder in folders if not folder.is_symlink() and _is_run(folder)]
    return sorted((one for one in found if one is not None), key=lambda one: -one.changed)


def closed_folders(root: Path) -> list[Path]:
    """The folders in a folder of which cannot be told whether they are runs: what they hold may not be looked at, even by its name."""
    folders = sorted(root.iterdir()) if root.is_dir() and not _is_run(root) else []
    return [one for one in folders if not one.is_symlink() and os.path.isdir(one) and not os.access(one, os.X_OK)]


def find_run(root: Path, name: str) -> RunLine:
    """The run of that name. Raises LookupError when there is none, ValueError when a file in it leads outside."""
    found = next((one for one in list_runs(root) if one.name == name), None)  # looked up, never joined to a path
    if found is None:
        raise LookupError(f"there is no run {name!r} here")
    check_run(found.path)
    return found


def _is_run(folder: Path) -> bool:
    return all(os.path.isfile(folder / name) for name in ("config.json", "seeds.json"))


def is_under_way(folder: Path) -> bool:
    """Whether a run goes on: a process drives it, or, where no lock tells, it wrote something lately and has no report."""
    driven = is_driven(folder)
    if driven is not None:
        return driven
    return time.time() - (_changed(folder) or 0.0) < LIVE_S and not os.path.isfile(folder / "report.html")


def _changed(folder: Path) -> float | None:
    """When a run last wrote, Unix seconds; None of one that is gone."""
    written = [folder / name for name in ("metrics.jsonl", "evaluations.jsonl", "episodes", "config.json")]
    try:
        return max(os.stat(file).st_mtime for file in written if os.path.exists(file))
    except (OSError, ValueError):
        return None


def _line(folder: Path) -> RunLine | None:
    changed = _changed(folder)
    if changed is None:  # it is gone since it was found
        return None
    return RunLine(os.fsencode(folder.resolve().name).decode(errors="replace"), folder, changed, is_under_way(folder))
