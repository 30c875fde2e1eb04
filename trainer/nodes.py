"""Nodes of the cluster, as Ray's books have them."""

from __future__ import annotations

from collections.abc import Mapping

import ray


def lost_node(node: str) -> str:
    """That a node is gone, by its address, its host and the first digits of Ray's id of it; "" where it is there, or `node` is empty.

    Example: `lost_node(id) == "its node 10.0.0.7 (worker-3, 5f0c2b7a91de) is gone"`.
    """
    found = [one for one in ray.nodes() if one["NodeID"] == node and not one["Alive"]] if node else []
    return f"its {_named(found[0])} is gone" if found else ""


def going_nodes() -> dict[str, str]:
    """The nodes that the cluster is about to take away (Ray calls them draining), by their id, each as `lost_node` names it."""
    going = set(ray._private.state.state.get_draining_nodes())
    return {one["NodeID"]: f"its {_named(one)} is about to go" for one in ray.nodes() if one["NodeID"] in going} if going else {}


def has_room(each: Mapping[str, float]) -> bool:
    """Whether a node that stays has so much of everything left: each in Ray's words.

    Shares of GPUs may lie on several; Ray then finds no place for who asks for one.
    """
    going, alive = going_nodes(), {one["NodeID"] for one in ray.nodes() if one["Alive"]}
    free = ray._private.state.available_resources_per_node()
    return any(
        all(has.get(name, 0.0) >= amount for name, amount in each.items()) for node, has in free.items() if node in alive.difference(going)
    )


def _named(node: Mapping[str, str]) -> str:
    return f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']}, {node['NodeID'][:12]})"
