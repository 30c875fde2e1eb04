"""Where in Ray's dashboard the actor and the node are that played an episode, as long as the cluster knows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Nodes = Callable[[], Mapping[str, bool]]
"""The ids of the nodes of a cluster, those that are gone among them, and whether each is alive."""
LONGEST = 100
"""Characters of an id that are shown. Ray's have 32 and 56."""
_ID = re.compile(r"[0-9a-f]{1,100}")


@dataclass(frozen=True, slots=True)
class PlayedAt:
    """Where an episode was played, as Ray calls it: text for a page, and the addresses of Ray's own pages of it, None where there is none.

    Example: `PlayedAt("c0ffee", "ab12", "/#/actors/c0ffee", "/#/cluster/nodes/ab12", "/#/logs/?nodeId=ab12")`.
    """

    actor: str
    node: str
    actor_page: str | None = None
    node_page: str | None = None
    logs_page: str | None = None


def played_at(found: Mapping[str, Any], nodes: Nodes | None) -> PlayedAt | None:
    """Where a whole episode was played, None where its store does not say. nodes: of the cluster whose dashboard shows the page, None where
    none does.

    Ray's ids are never used twice, so a node that the cluster knows is the one of the episode, and the actor was one of the cluster's.
    """
    actor, node = (str(found.get(name) or "") for name in ("actor", "node"))
    if not actor and not node:
        return None
    alive = nodes().get(node) if nodes is not None and _ID.fullmatch(node) else None
    return PlayedAt(
        actor[:LONGEST],
        node[:LONGEST],
        f"/#/actors/{actor}" if alive is not None and _ID.fullmatch(actor) else None,
        f"/#/cluster/nodes/{node}" if alive else None,
        f"/#/logs/?nodeId={node}" if alive else None,
    )
