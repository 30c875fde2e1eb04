"""Whether engines on other nodes reach the services that a run starts, which listen on the loopback of its own node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.recipe.placement import may_hold_engine
from burnish.recipe.resolve import ResolvedRun
from burnish.rpc.loopback import this_loopback

_COMMANDS = {
    "tools": ("serve-tools", "deploy-tools"),
    "verifier": ("serve-verifier", "deploy-verifier"),
    "environment": ("serve-env", "deploy-env"),
}


def check_reach(run: ResolvedRun) -> None:
    """Ask every other node of the cluster that an engine may be on whether it shares the loopback of this one, where services are started.

    Raises ValueError naming a node that does not, or does not answer within `limits.place_s` seconds.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    started = [name for name, service in run.services.items() if service.address is None]
    if not started or run.placement.ray_address is None:
        return
    alive, id, limit = [node for node in ray.nodes() if node["Alive"]], ray.get_runtime_context().get_node_id(), run.limits.place_s
    others = [node for node in alive if node["NodeID"] != id and may_hold_engine(run.placement, node["Resources"])]
    ask = ray.remote(num_cpus=0, max_retries=0)(this_loopback)
    asked = [ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote() for node in others]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=limit) if asked else ([], [])
    for node, call in zip(others, asked, strict=True):
        if call not in answered:
            raise ValueError(f"{_shown(node)} does not say within {limit:g} s whether it reaches services.{started[0]}; is burnish there?")
        if ray.get(call, timeout=limit) != this_loopback():
            raise ValueError(unreached(run, started[0], _shown(node), next(one for one in alive if one["NodeID"] == id)))


def _shown(node: Mapping[str, Any]) -> str:
    return f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"


def unreached(run: ResolvedRun, name: str, there: str, own: Mapping[str, Any]) -> str:
    """What to say of a service that `there`, a node, does not reach. own: the node of the run, as `ray.nodes()` has it."""
    kind = run.services[name].kind
    assert kind is not None, "a service that the run starts has a kind"
    here = f"node:{own['NodeManagerAddress']}"
    possible = here in own["Resources"] and may_hold_engine(run.placement, own["Resources"])
    stay = f', or keep engines on this node by resources.engine_resources = {{ "{here}" = 0.001 }}' if possible else ""
    return (
        f"services.{name}: the run starts it on the loopback of this node, and an engine may be on {there}, which does not reach that; "
        f"serve it where every node reaches it, by burnish {' or '.join(_COMMANDS[kind])}, and write [services.{name}] address = …{stay}"
    )
