"""Run by test_base_commands.py: every command line of its input, in a burnish whose base alone can be found. A row of JSON for each."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions
from types import ModuleType


class BaseAlone(PathFinder):
    """Finds modules as Python does, those of other distributions than the base's left out."""

    def __init__(self, base: frozenset[str]) -> None:
        def is_base(distribution: str) -> bool:
            return re.sub(r"[-_.]+", "-", distribution).lower() in base

        self.hidden = {module for module, owners in packages_distributions().items() if not any(map(is_base, owners))}

    def find_spec(  # type: ignore[override]  # Python's own is a class method
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.hidden else PathFinder.find_spec(name, path, target)


def outcome(arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    from burnish.cli.main import app

    said, code = io.StringIO(), 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            app(list(arguments))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
    return code, said.getvalue()


def main() -> None:
    wanted = json.load(sys.stdin)
    alone = BaseAlone(frozenset([*wanted["base"], "burnish"]))
    sys.meta_path = [alone if finder is PathFinder else finder for finder in sys.meta_path]
    for module in [name for name in sys.modules if name.partition(".")[0] in alone.hidden]:
        del sys.modules[module]
    for arguments in wanted["commands"]:
        print(json.dumps(outcome(arguments)), flush=True)


if __name__ == "__main__":
    main()
