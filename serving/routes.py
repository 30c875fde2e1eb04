"""Who is answered by which version: names that clients ask for, shares of callers, shadows and canaries.

A caller stays with its version, whatever else changes. Nothing here knows Ray, nor the file that versions come from (`deployment.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from .canary.config import JudgeTable
from .canary.watch import Canary


def served_name(model: str, version: str) -> str:
    return f"{model}:{version}"


def app_name(served: str) -> str:
    """What Serve calls a version. The @ stands in no name, so that no two versions share one.

    Example: `app_name("inspector:v1") == "burnish-inspector@v1"`.
    """
    return f"burnish-{served.replace(':', '@')}"


def judge_name(served: str) -> str:
    """What Serve calls the judge of a version. Example: `judge_name("inspector:v2") == "burnish-inspector@v2@judge"`."""
    return f"{app_name(served)}@judge"


@dataclass(frozen=True, slots=True)
class VersionShare:
    """A version that runs, the weight with which it is drawn, the names of its adapters, the share of callers that it shadows, its judge,
    and how many engines it may have."""

    version: str
    weight: float
    adapters: tuple[str, ...] = ()
    shadow: float = 0.0
    judge: JudgeTable | None = None
    engines: int = 1


Routes = Mapping[str, tuple[VersionShare, ...]]
"""By model: the versions that run, in the order of the file."""


def versions_of(routes: Routes) -> list[str]:
    """The served names of the versions that run."""
    return [served_name(model, share.version) for model, shares in routes.items() for share in shares]


def engines_of(routes: Routes) -> int:
    """How many engines all versions may have together."""
    return sum(share.engines for shares in routes.values() for share in shares)


def names(routes: Routes) -> list[str]:
    """What clients may ask for: models, versions of them, adapters of a model, and those of one version.

    Example: `["m", "m:v1", "m:search", "m:v1:search"]`.
    """
    adapters = [f"{model}:{name}" for model, shares in routes.items() for share in shares for name in share.adapters]
    of_versions = [
        f"{served_name(model, share.version)}:{name}" for model, shares in routes.items() for share in shares for name in share.adapters
    ]
    return [*routes, *versions_of(routes), *dict.fromkeys(adapters), *of_versions]


def version_for(routes: Routes, asked: str, caller: str) -> str:
    """The served name of the version that answers. A caller stays with its version: its place among all callers is a hash of its name, and
    versions divide that line in their order. So when the last one's weight grows, it takes callers over and gives none back. Those who ask
    for an adapter are shared among the versions that have it.

    asked: one of `names`. Example: `version_for({"m": (VersionShare("v1", 1.0),)}, "m", "search-team") == "m:v1"`.
    """
    model, *rest = asked.split(":")
    shares = routes[model]
    if rest and any(share.version == rest[0] for share in shares):
        return served_name(model, rest[0])
    shares = tuple(share for share in shares if not rest or rest[0] in share.adapters)
    place = _place(model, caller) * sum(share.weight for share in shares)
    for share in shares:
        place -= share.weight
        if place < 0:
            return served_name(model, share.version)
    return served_name(model, max(shares, key=lambda share: share.weight).version)  # none has a weight, or the line's very end


def _place(line: str, caller: str) -> float:
    """Where a caller stands in a line of all callers, from 0 to 1. A client names it, so it may hold half a character."""
    return int.from_bytes(hashlib.sha256(f"{line}\0{caller}".encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def shadows_for(routes: Routes, asked: str, caller: str) -> list[str]:
    """The served names of the versions that get a copy of a caller's requests to a model. As a version's share grows, it takes callers on
    and leaves none. Who asks for a version or an adapter by name means that one, and no other gets it."""
    shadows = {served_name(asked, share.version): share.shadow for share in routes.get(asked, ()) if share.shadow}
    return [name for name, share in shadows.items() if _place(name, caller) < share]


def engine_name(routes: Routes, asked: str, version: str) -> str:
    """What a version's engine is asked for: itself, or one of its adapters. Example: `engine_name(routes, "m:search", "m:v1") ==
    "m:v1:search"`."""
    model, *rest = asked.split(":")
    among = {name for share in routes[model] for name in share.adapters}
    return f"{version}:{rest[-1]}" if rest and rest[-1] in among else version


def canaries(routes: Routes) -> dict[str, Canary]:
    """The versions on trial by their served names: those with a judge that have callers, against the version with the largest weight that
    has none."""
    found = {}
    for model, shares in routes.items():
        settled = [share for share in shares if share.judge is None and share.weight]
        if settled:
            primary = served_name(model, max(settled, key=lambda share: share.weight).version)
            on_trial = [(share.version, share.judge) for share in shares if share.judge is not None and share.weight]
            found.update({served_name(model, version): Canary(model, primary, judge) for version, judge in on_trial})
    return found


def without(routes: Routes, rolled_back: Collection[str]) -> Routes:
    """The routes with nobody sent to these versions, by their served names, but who asks for them."""
    return {
        model: tuple(replace(share, weight=0.0) if served_name(model, share.version) in rolled_back else share for share in shares)
        for model, shares in routes.items()
    }
