"""Where the pages are, for the templates: on a server, or as files of a bundle. What is not there has no address, and is no link."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from ..listing import GROUP, PLACE

STATIC = Path(__file__).parent / "static"
BASE = "/rollouts"
LONGEST = 2000
"""Letters of an episode's or a task's name in an address: a server takes none that is far longer."""


class Links(Protocol):
    """Addresses for one page. served: whether a server answers, which filters, searches and compares.

    episode: of a row with the columns of `PLACE`; further names are options of its page. drawing: of such a row, as its environment
    draws it. group: the attempts at the task of such a row. drift: of two moments, each as `place` writes it, and of one task of theirs.
    """

    served: bool

    def asset(self, name: str) -> str: ...
    def runs(self) -> str: ...
    def run(self, name: str) -> str: ...
    def report(self, run: str) -> str: ...
    def episodes(self, run: str, **asked: Any) -> str | None: ...
    def episode(self, run: str, row: Mapping[str, Any], **options: Any) -> str | None: ...
    def drawing(self, run: str, row: Mapping[str, Any]) -> str | None: ...
    def group(self, run: str, row: Mapping[str, Any], **options: Any) -> str | None: ...
    def compare(self) -> str | None: ...
    def models(self) -> str: ...
    def drift(self, before: str, after: str, task: str = "") -> str | None: ...


class Served:
    """Addresses on the server. Example: `Served().run("nano-1") == "/rollouts/nano-1"`."""

    served = True

    def asset(self, name: str) -> str:
        return f"{BASE}/static/{asset_name(name)}"

    def runs(self) -> str:
        return BASE

    def run(self, name: str) -> str:
        return f"{BASE}/{quote(name, safe='')}"

    def report(self, run: str) -> str:
        return f"{self.run(run)}/report"

    def episodes(self, run: str, **asked: Any) -> str:
        return f"{self.run(run)}/episodes" + (f"?{urlencode(asked)}" if asked else "")

    def episode(self, run: str, row: Mapping[str, Any], **options: Any) -> str | None:
        if len(row["episode"]) > LONGEST:
            return None
        return f"{self.run(run)}/episode?{urlencode({**{name: row[name] for name in PLACE}, **options})}"

    def drawing(self, run: str, row: Mapping[str, Any]) -> str:
        return f"{self.run(run)}/drawing?{urlencode({name: row[name] for name in PLACE})}"

    def group(self, run: str, row: Mapping[str, Any], **options: Any) -> str | None:
        if len(row["task"]) > LONGEST:
            return None
        return f"{self.run(run)}/group?{urlencode({**{name: row[name] for name in GROUP}, **options})}"

    def compare(self) -> str:
        return f"{BASE}/-/compare"

    def models(self) -> str:
        return f"{BASE}/-/models"

    def console(self) -> str:
        return f"{BASE}/-/console"

    def drift(self, before: str, after: str, task: str = "") -> str | None:
        if len(task) > LONGEST:
            return None
        return f"{BASE}/-/drift?{urlencode({'before': before, 'after': after, **({'task': task} if task else {})})}"


def asset_name(name: str) -> str:
    """An asset under a name that changes with what it holds, so that a browser may keep it."""
    return f"{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}.{name}"
