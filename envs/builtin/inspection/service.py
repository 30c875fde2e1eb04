"""The inspection tools: `burnish serve-tools burnish.envs.builtin.inspection.service`.

BURNISH_SHOP_FLOOR names the SQLite file to keep; without it the database lasts as long as the process.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from functools import cache
from pathlib import Path

from ...tools import ToolContext, ToolRejected, tool
from . import wording
from .parts import Feature, Part, level_of
from .shop_floor import ShopFloor


@cache
def shop_floor() -> ShopFloor:
    """This process's database."""
    kept = os.environ.get("BURNISH_SHOP_FLOOR")
    if kept:
        return ShopFloor(kept)
    folder = tempfile.TemporaryDirectory(prefix="burnish-shop-floor-")
    atexit.register(folder.cleanup)
    return ShopFloor(Path(folder.name) / "shop-floor.sqlite")


@tool
def measure(part: int, feature: str, *, context: ToolContext) -> str:
    """Measure one feature of the part on the bench.

    Args:
        part: number of the part.
        feature: name of the feature, as listed in the request.
    """
    on_bench, found = _find(feature, context)
    if part != on_bench.number:
        raise ToolRejected(f"part {part} is not on the bench")
    level = int(context.data["level"])
    deviation = shop_floor().measure(context.episode_id, on_bench, found, level)
    return wording.reading(found, deviation, level_of(level))


@tool
def spec(feature: str, *, context: ToolContext) -> str:
    """Look up nominal size and limit of a feature of the part on the bench, in micrometres.

    Args:
        feature: name of the feature, as listed in the request.
    """
    return wording.specification(_find(feature, context)[1])


def _find(name: str, context: ToolContext) -> tuple[Part, Feature]:
    part = shop_floor().part(context.seed, int(context.data["level"]))
    feature = part.feature(name)
    if feature is None:
        raise ToolRejected(f"the part has no {name[:40]}")
    return part, feature
