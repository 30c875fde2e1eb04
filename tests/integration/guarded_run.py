"""A whole run over a scripted engine, in this process and without Ray, with a guard that finds something in its third step.

python -m tests.integration.guarded_run RECIPE.toml FOLDER once|always
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.integration import scripted_run

from burnish.trainer.watch import guards

found: list[int] = []


def planted(seen: guards.Seen, limits: guards.GuardsConfig) -> str | None:
    if len(seen.rows) != 3 or (found and sys.argv[3] == "once"):
        return None
    found.append(3)
    return "planted"


def main() -> None:
    scripted_run.prepare()
    guards.RULES = {"drift": planted}
    scripted_run.play(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
