"""How many engines a run is to have: asked for in its folder, by `burnish runs scale`, and heeded by who drives it, between two steps.

What was asked for last stays in the folder, so a run that is resumed begins with it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from burnish.recipe.resolve import ResolvedRun
from burnish.rollout.store.own_files import own_file, read_whole
from burnish.run.display import say

if TYPE_CHECKING:
    from burnish.run.under_way import Run

FILE = "engines.json"


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    engines: int = Field(ge=1)


def ask_for_engines(run: Path, engines: int) -> None:
    """Ask whoever drives the run in a folder, now or later, for so many engines, at least one."""
    draft = run / f".{FILE}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    with draft.open("x") as file:  # a link that lies there already is not followed
        file.write(json.dumps({"engines": engines}) + "\n")
    draft.replace(run / FILE)


def engines_asked(run: Path) -> int | None:
    """How many were asked for last, None where nobody did. Raises ValueError for a file that does not say."""
    file = own_file(run, FILE)
    if file is None:
        return None
    try:
        return _Asked.model_validate_json(read_whole(file)).engines
    except ValidationError as error:
        ask = f"ask again with `burnish runs scale {run} --engines N`"
        raise ValueError(f"{file} does not say how many engines there are to be; {ask}") from error


def at_size_asked(recipe: ResolvedRun, asked: int | None) -> ResolvedRun:
    """A recipe with the engines that were asked for (`engines_asked`) while its run was under way before, None for none. It begins with no
    more than it says, for which the cluster has room; the others join later."""
    if asked is None:
        return recipe
    placement = recipe.placement
    least = min(asked, placement.min_engines or placement.engines)
    return replace(recipe, placement=replace(placement, engines=min(asked, placement.engines), min_engines=least, max_engines=asked))


def heed_size(run: Run) -> None:
    """Let the fleet have the engines that were asked for since this was last called."""
    found: int | str | None
    try:
        found = engines_asked(run.folder.path)
    except ValueError as error:
        found = f"{error}. The run goes on with the engines that it has"
    if found is None or found == run.engines:
        return
    run.engines = found
    if isinstance(found, str):
        say(run.console, found)
        return
    there = len(run.session.algo.fleet.runners)
    run.session.scale(found)
    more, fewer = "; others join where the cluster has room", "; the last that came leave once they have played what they have"
    say(run.console, f"engines: {found} asked for, {there} there{more if found > there else fewer if found < there else ''}")
