"""`burnish run` with its services, over a scripted engine and without Ray, at its most talkative.

python -m tests.integration.told_run LOG RECIPE …      the arguments of `burnish run`; every logger writes to LOG
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.integration.scripted_run import instead, local_parts

from burnish.cli.main import main
from burnish.cluster import check_services, services_of
from burnish.recipe.rehearsal import rehearse_apart
from burnish.recipe.resolve import ResolvedRun


@contextlib.contextmanager
def parts(recipe: ResolvedRun, logs: Path, say: Any, runs: Path | None = None) -> Iterator[Mapping[str, str]]:
    with services_of(recipe.services, logs) as addresses:
        check_services(recipe, addresses)
        say(rehearse_apart(recipe, addresses).line)
        yield addresses


if __name__ == "__main__":
    logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG)
    local_parts()
    instead(parts_of=parts)
    sys.argv[1:] = ["run", *sys.argv[2:]]
    main()
