"""Nodes of the cluster, as Ray's books have them."""

from __future__ import annotations

import ray


def lost_node(node: str) -> str:
    """That a node is gone, by its address, its host and the first digits of Ray's id of it; "" where it is there, or `node` is empty.

    Example: `lost_node(id) == "its node 10.0.0.7 (worker-3, 5f0c2b7a91de) is gone"`.
    """
    found = [one for one in ray.nodes() if one["NodeID"] == node and not one["Alive"]] if node else []
    return f"its node {found[0]['NodeManagerAddress']} ({found[0]['NodeManagerHostname']}, {node[:12]}) is gone" if found else ""
