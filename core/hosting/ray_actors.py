"""`burnish deploy-verifier` and `deploy-tools`: the server of `burnish serve-…` in many Ray actors. The actors only hold plain objects.

A directory, an actor called as the deployment is, says where its replicas are; clients with the address `ray:NAME` ask it (see
`rpc/ray_names.py`). Directory and replicas belong to the process that deploys, and Ray ends them with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from burnish.hosting.scaling import Scale, ServiceReplicas
from burnish.hosting.services import ServiceKind, load_services
from burnish.rpc.address import NAME
from burnish.rpc.local_ray import start_local_ray
from burnish.rpc.ray_names import NAMESPACE
from burnish.rpc.security import ServerSecurity
from burnish.rpc.server import Server, ServerOptions

START_S = 120.0
LOAD_S = 5.0
LOOK_S = 0.1  # for an answer that is there already
STOP_S = 15.0  # longer than a server's own drain
POLL_S = 1.0
SHOWN = 1000  # characters of what Ray says of an error
OBJECT_STORE_BYTES = 80 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class DeployOptions:
    """What to run and how.

    host: what replicas listen on; "" is loopback on a cluster of one node, and each node's own address on a larger one. cpus: of each
    replica. ray_address: a running cluster, "auto" to find one, "local" to start one here. kwargs: of an environment; allowed: which of
    them clients may set.
    """

    kind: ServiceKind
    target: str
    name: str
    scale: Scale
    host: str = ""
    cpus: float = 1.0
    ray_address: str = "auto"
    security: ServerSecurity = dataclasses.field(default_factory=ServerSecurity)
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    allowed: tuple[str, ...] = ()


class Directory:
    """Where the replicas of a deployment are."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._addresses: list[str] = []
        self._stop = False

    def publish(self, addresses: list[str]) -> None:
        self._addresses = addresses

    def addresses(self) -> list[str]:
        return self._addresses

    def ask_to_stop(self) -> None:
        self._stop = True

    def asked_to_stop(self) -> bool:
        return self._stop

    def __repr__(self) -> str:
        return f"Directory({self._name})"


class ReplicaActor:
    """One server of a deployment."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def start(self, folder: str, deployed: DeployOptions, options: ServerOptions) -> str:
        os.chdir(folder)  # where modules and files of the target are
        host = options.host or ray.util.get_node_ip_address()
        services = load_services(deployed.kind, deployed.target, deployed.kwargs, deployed.allowed)
        self._server = Server(services, dataclasses.replace(options, host=host))
        return await self._server.start()

    async def load(self) -> int:
        return self._server.in_flight

    async def stop(self) -> bool:
        return await self._server.stop()

    def __repr__(self) -> str:
        return f"Replica({self._name})"


@dataclasses.dataclass(frozen=True, slots=True)
class _Starting:
    """A replica on its way up: its actor, the address to come, and until when it may take, on the monotonic clock."""

    actor: Any
    address: Any
    deadline: float


class RayReplicaPool:
    """Replicas as Ray actors; the `ReplicaPool` of a `ServiceReplicas`."""

    def __init__(self, options: DeployOptions) -> None:
        self._options = options
        self._starting: _Starting | None = None
        self._actors: dict[str, Any] = {}
        self._loads: dict[str, int] = {}
        self._published: list[str] = []
        # Lost with its node, it begins anew on another, and knows nothing until it is told again.
        kept = {"name": options.name, "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1}
        self._directory = ray.remote(Directory).options(**kept).remote(options.name)
        try:
            ray.get(self._directory.addresses.remote(), timeout=START_S)
        except ray.exceptions.RayError as error:
            raise ValueError(f"the directory of {options.name!r} did not start on this cluster: {_in_one_line(error)}") from error

    def start(self) -> str | None:
        one = self._starting = self._starting or self._begin()
        try:
            address = str(ray.get(one.address, timeout=LOOK_S))
        except ray.exceptions.GetTimeoutError as error:
            if time.monotonic() < one.deadline:
                return None
            self.abandon()
            cpus = f"{self._options.cpus:g} CPUs"
            raise ValueError(f"a replica did not start within {START_S:g} s; has the cluster {cpus} to spare for it (--cpus)?") from error
        except ray.exceptions.RayTaskError as error:
            self.abandon()
            raise ValueError(f"a replica did not start: {error.cause}") from error
        except ray.exceptions.RayError as error:  # its process died, its node was lost, or it had no room anywhere
            self.abandon()
            raise ValueError(f"a replica did not start: {_in_one_line(error)}") from error
        self._starting, self._actors[address] = None, one.actor
        return address

    def _begin(self) -> _Starting:
        options = self._options
        if ray.available_resources().get("CPU", 0.0) < options.cpus:
            raise ValueError(f"the cluster has no {options.cpus:g} CPUs free for another replica (--cpus)")
        actor = ray.remote(ReplicaActor).options(num_cpus=options.cpus, max_restarts=0).remote(options.name)
        server = ServerOptions(host=_host(options), security=options.security)
        return _Starting(actor, actor.start.remote(os.getcwd(), options, server), time.monotonic() + START_S)

    def abandon(self) -> None:
        if self._starting is not None:
            ray.kill(self._starting.actor)
        self._starting = None

    def loads(self) -> dict[str, int | None]:
        asked = {address: actor.load.remote() for address, actor in self._actors.items()}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=LOAD_S)
        return {address: self._load(address, answer) for address, answer in asked.items()}

    def _load(self, address: str, answer: Any) -> int | None:
        try:
            self._loads[address] = int(ray.get(answer, timeout=LOOK_S))
        except ray.exceptions.GetTimeoutError:
            pass  # alive and busy: as it was
        except ray.exceptions.RayError:
            return None
        return self._loads.get(address, 0)

    def stop(self, addresses: Sequence[str]) -> None:
        actors = [self._actors.pop(address) for address in addresses]
        for address in addresses:
            self._loads.pop(address, None)
        ended = [actor.stop.remote() for actor in actors]
        if ended:
            ray.wait(ended, num_returns=len(ended), timeout=STOP_S)  # those that are gone, or do not end in time: killed either way
        for actor in actors:
            ray.kill(actor)

    def publish(self, addresses: list[str]) -> None:
        self._published = list(addresses)
        with contextlib.suppress(ray.exceptions.RayError):  # a directory that is late, or lost, hears it with the next round
            ray.get(self._directory.publish.remote(self._published), timeout=LOAD_S)

    def asked_to_stop(self) -> bool:
        self.publish(self._published)
        try:
            return bool(ray.get(self._directory.asked_to_stop.remote(), timeout=LOAD_S))
        except ray.exceptions.RayError:
            return False  # replicas do not end because a directory is late, or lost


def deploy(options: DeployOptions, say: Callable[[str], None] = print) -> None:
    """Run the replicas until Ctrl-C, SIGTERM or `undeploy`. Prints one line of JSON once they serve, and a line per change of their number.

    Raises ValueError when the target is wrong, the name is taken, or the listed security does not allow the addresses.
    """
    if not NAME.fullmatch(options.name):
        raise ValueError(f"name {options.name!r} must be made of letters, digits, '.', '_' and '-'")
    load_services(options.kind, options.target, options.kwargs, options.allowed)  # here first: what is wrong with it is one clear line
    with ray_cluster(options.ray_address):
        options.security.check_host(_host(options) or "every node's own address")
        if _find(options.name) is not None:
            raise ValueError(
                f"the name {options.name!r} is taken on this cluster; `burnish undeploy {options.name}`, or give another --name"
            )
        pool = RayReplicaPool(options)
        deployment = ServiceReplicas(pool, options.scale, lambda text: say(f"{options.name}: {text}"))
        try:
            while not deployment.start():
                if pool.asked_to_stop():
                    return
                time.sleep(POLL_S / 2)
            say(json.dumps({"event": "ready", "address": f"ray:{options.name}", "replicas": deployment.addresses, "pid": os.getpid()}))
            sys.stdout.flush()
            while not pool.asked_to_stop():
                time.sleep(POLL_S)
                deployment.step()
        finally:
            deployment.stop()


def undeploy(name: str, ray_address: str = "auto", wait_s: float = 60.0) -> None:
    """Have a deployment end, and wait until it has. Raises ValueError when there is none of that name, or it does not end in time."""
    with ray_cluster(ray_address):
        directory = _find(name)
        if directory is None:
            raise ValueError(f"nothing called {name!r} is deployed on this cluster")
        try:
            ray.get(directory.ask_to_stop.remote(), timeout=LOAD_S)
        except ray.exceptions.RayError as error:
            raise ValueError(f"{name!r} was not told to end, its directory does not answer ({_in_one_line(error)}); try again") from error
        deadline = time.monotonic() + wait_s
        while _find(name) is not None:
            if time.monotonic() > deadline:
                raise ValueError(f"{name!r} was asked to end and has not within {wait_s:g} s")
            time.sleep(POLL_S / 2)


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[None]:
    """Belong to a running cluster, or to a small one that is started here and ends again."""
    if ray.is_initialized():
        yield
        return
    quiet = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            start_local_ray(include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster at {address!r}: start one with `ray start --head`, or give --ray-address local for one on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _host(options: DeployOptions) -> str:
    """What replicas listen on; empty is each node's own address."""
    if options.host:
        return options.host
    alive = [node for node in ray.nodes() if node["Alive"]]
    secure = options.security.cert or options.security.insecure
    return "127.0.0.1" if len(alive) == 1 and not secure else ""


def _in_one_line(error: Exception) -> str:
    """What Ray says of an error: which actor, then why, over several lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
