"""Where the replicas of `ray:NAME` are. Imports ray only when such an address is used."""

from __future__ import annotations

from .extras import require

NAMESPACE = "burnish-services"
LOOKUP_S = 5.0


def replica_addresses(name: str) -> tuple[str, ...]:
    """`host:port` of every replica that `burnish deploy-verifier --name NAME` (or -tools) runs now, at least one.

    Blocks up to five seconds. Raises ValueError when Ray is not installed, this process belongs to no Ray cluster, or nothing of that name
    is deployed there.
    """
    require(f"ray:{name}", ["ray"], "train")
    import ray

    if not ray.is_initialized():
        raise ValueError(f"ray:{name} is looked up on a Ray cluster, and this process belongs to none: ray.init(address=…) first")
    try:
        directory = ray.get_actor(name, namespace=NAMESPACE)
        addresses = ray.get(directory.addresses.remote(), timeout=LOOKUP_S)
    except ValueError:
        raise ValueError(f"nothing called {name!r} is deployed on this Ray cluster; `burnish deploy-verifier` does that") from None
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ValueError(f"the deployment {name!r} on this Ray cluster does not answer: {type(error).__name__}") from error
    if not addresses:
        raise ValueError(f"the deployment {name!r} has no replica that is up")
    return tuple(addresses)
