"""What a run needs around it: services as processes, Ray, and the fleet; everything is ended on the way out, whatever happened."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.hosting.process import ServiceProcess
from burnish.recipe.checks import REMOTE_ENVIRONMENT
from burnish.recipe.placement import Placement, cluster_problem
from burnish.recipe.resolve import ResolvedRun
from burnish.recipe.services import ServiceConfig
from burnish.rewards.config import RewardConfig
from burnish.rpc.address import RAY, SERVICE, service_references, shown_address, with_addresses
from burnish.rpc.local_ray import start_local_ray
from burnish.rpc.run_logs import link_services, run_namespace
from burnish.rpc.signals import keep_sigterm

if TYPE_CHECKING:
    from burnish.inspector.console import WatchedPlaces

CHECK_S = 10.0
"""Seconds in which a service answers that it is there, where no recipe says."""

Played = tuple[str, Mapping[str, Any], Sequence[RewardConfig]]
"""An environment by its id, what it is made with, and what judges its episodes."""


@contextmanager
def services_of(services: Mapping[str, ServiceConfig], logs: Path) -> Iterator[dict[str, str]]:
    """Start the recipe's services and yield the address of each by name; those that run already are passed through."""
    with ExitStack() as stack:
        addresses = {}
        for name, service in services.items():
            if service.address is not None:
                addresses[name] = service.full_address
                continue
            assert service.kind is not None, "a service has an address or a target"
            process = ServiceProcess(
                service.kind,
                service.target,
                logs / f"{name}.log",
                ready_s=service.start_timeout_s,
                kwargs=service.kwargs,
                python=None if service.python is None else Path(service.python),
            )
            stack.callback(process.stop)
            addresses[name] = process.start()
        yield addresses


def on_ray(run: ResolvedRun) -> list[str]:
    """The services that are found on the cluster, `ray:NAME`, and so not before the run belongs to it."""
    given = [one for _, args, rewards in _played(run) for one in (args.get("address"), *(entry.verifier for entry in rewards))]
    return sorted({str(one) for one in (*given, *(service.address for service in run.services.values())) if str(one).startswith(RAY)})


def check_services(run: ResolvedRun, addresses: Mapping[str, str], *, without_ray: bool = False) -> None:
    """Ask every service that the recipe uses whether it answers (see `check_played`), for `limits.check_s` each."""
    check_played(_played(run), addresses, run.limits.check_s, without_ray=without_ray)


def check_played(played: Iterable[Played], addresses: Mapping[str, str], limit_s: float = CHECK_S, *, without_ray: bool = False) -> None:
    """Ask every service that these use whether it answers, but those that have no address here.

    without_ray: leave out what is at `ray:NAME`, which answers to who belongs to its cluster. Raises ValueError naming the first that does
    not answer within `limit_s` seconds, or is not what it is used as.
    """
    from burnish.envs.remote.env import RemoteEnv
    from burnish.envs.remote.tools import RemoteToolSet
    from burnish.rewards.remote.client import RemoteVerifier

    def there(value: Any) -> bool:
        known = all(name in addresses for name in service_references(value))
        return known and not (without_ray and str(with_addresses(value, addresses)).startswith(RAY))

    for environment, args, rewards in played:
        if environment == REMOTE_ENVIRONMENT:
            if there(args.get("address")):
                RemoteEnv(**with_addresses(args, addresses)).check(limit_s)
        else:
            for name in service_references(args):
                if there(SERVICE + name):
                    RemoteToolSet(addresses[name]).check(limit_s)
        for entry in rewards:
            if entry.verifier is not None and there(entry.verifier):
                RemoteVerifier(entry.name, with_addresses(entry.verifier, addresses), verifier=entry.verifier_id or "").check(limit_s)


def watched_of(run: ResolvedRun, addresses: Mapping[str, str]) -> WatchedPlaces | None:
    """What the console of the run's dashboard shows: the recipe's services, verifiers and environments that it names by their address
    alone, and what `resources.watch` adds; None for nothing, and where the cluster is not the run's own. Raises ValueError when that cannot
    be read."""
    from burnish.hosting.watched import watched_by_run

    if run.placement.ray_address is not None:
        return None
    direct = {}
    for environment, args, rewards in _played(run):
        given = [args.get("address")] if environment == REMOTE_ENVIRONMENT else []
        for one in (*given, *(entry.verifier for entry in rewards)):
            if isinstance(one, str) and not one.startswith(SERVICE):
                direct[shown_address(one)] = one
    return watched_by_run({**addresses, **direct}, run.placement.watch)


def worlds_of(run: ResolvedRun) -> dict[str, Played]:
    """The environments that the run trains in, by their name in the blend, "" for the recipe's own."""
    worlds: dict[str, Played] = {"": (run.environment.id, run.environment.args, run.rewards)}
    for one in (one for table in run.reinforced for one in table.blend):
        worlds[one.called] = (one.environment, one.environment_args, ())
    return worlds


def _played(run: ResolvedRun) -> list[Played]:
    """All that the run plays: its own environment, those that are blended with it, and those of the suites of `[retention]`."""
    suites = ((suite.environment, suite.environment_args, suite.rewards) for suite in run.suites if suite.kind == "answers")
    return [*worlds_of(run).values(), *suites]


@contextmanager
def ray_session(placement: Placement, run: Path | None = None, watched: WatchedPlaces | None = None) -> Iterator[None]:
    """A Ray cluster to run on: the one at `resources.ray_address`, or one of our own that ends with the run.

    run: the folder of the run. The dashboard lists its logs, and shows it, and the runs beside it, below /rollouts where the cluster is our
    own. watched: what the console there shows.
    Raises ValueError when there is no such cluster, or it has not the GPUs that the run asks for.
    """
    import ray

    from burnish.inspector.pages.serve import behind_dashboard

    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default from its next release on
    with ExitStack() as stack:
        own = run is not None and placement.ray_address is None
        pages = stack.enter_context(behind_dashboard(run.parent, watched)) if own and run is not None else None
        with keep_sigterm():
            _start_ray(placement, pages, run_namespace(run.name) if run is not None else None)
        try:
            if run is not None:
                _show_logs(run)
            problem = cluster_problem(placement, [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]])
            if problem is not None:  # it would wait for them in vain, as long as limits.place_s says
                raise ValueError(problem)
            yield
        finally:
            with uninterrupted():
                ray.shutdown()


def _show_logs(run: Path) -> None:
    import ray

    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    with suppress(PermissionError):  # of a Ray of another account, which may not read the run's logs either
        link_services(logs, run_namespace(run.name), run / "logs")


def _start_ray(placement: Placement, pages: str | None = None, namespace: str | None = None) -> None:
    import ray

    if placement.ray_address is not None:
        try:
            ray.init(address=placement.ray_address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ValueError(f"resources.ray_address: no Ray cluster answers at {placement.ray_address}: {error}") from error
    else:
        if placement.worker_niceness is not None:
            os.environ["RAY_worker_niceness"] = str(placement.worker_niceness)  # noqa: SIM112  # as Ray spells it
        start_local_ray(  # also where RAY_ADDRESS names a cluster: a recipe says so itself if it means that one
            # Engine and learner work in turns, so both may use every core: Ray's count of CPUs only has to admit them.
            num_cpus=(placement.cpus or os.cpu_count() or 1) + placement.engines + 1,
            object_store_memory=placement.object_store_mb * 1024 * 1024,
            include_dashboard=True,
            proxy_server_url=pages,
            namespace=namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


Process = tuple[str, int, str]
"""A process of the cluster: the id of its node, its number there, and when it was born, since numbers are used again."""


def this_process(_: Any = None) -> Process:
    """The process that calls this."""
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid(), _born(os.getpid())


def kill_processes(processes: Sequence[Process], wait_s: float) -> None:
    """Kill processes of the cluster, on whichever node they are: `ray.kill` asks a process to end, and one that hangs does not hear it.

    Those that have ended are none; a node that does not answer within `wait_s` seconds keeps its own.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node, _, _ in processes]
    calls = [kill.options(scheduling_strategy=at).remote(pid, born) for at, (_, pid, born) in zip(there, processes, strict=True)]
    ray.wait(calls, num_returns=len(calls), timeout=wait_s)


def _kill(pid: int, born: str) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        if _born(pid) == born:
            os.kill(pid, signal.SIGKILL)


def _born(pid: int) -> str:
    """In ticks since the machine started, as Linux counts."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM while things are being ended, so that a second one cannot leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def without_line(part: bytes) -> Iterator[None]:
    """Leave lines that hold `part` out of what this process writes to stderr, its C++ libraries included."""
    sys.stderr.flush()
    real = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)

    def pass_on() -> None:
        with open(read, "rb") as lines:
            for line in lines:
                if part not in line:
                    os.write(real, line)
        os.close(real)

    reader = threading.Thread(target=pass_on, name="burnish-stderr", daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)  # the reader ends with the pipe's last writer; a child that has it keeps being read
        reader.join(timeout=1.0)


def dashboard_url() -> str:
    """Address of the Ray dashboard, empty when there is none."""
    import ray

    url = ray._private.worker.global_worker.node.webui_url
    return f"http://{url}" if url else ""


def request_resources(settings: Any, placement: Placement) -> None:
    """Ask for what each role takes of the cluster, in RLlib's own words. settings: an `RFTConfig`.

    RLlib places each env runner as one actor, so several GPUs of an engine are always of one node.
    """
    settings.env_runners(
        num_env_runners=placement.engines,
        num_gpus_per_env_runner=placement.engine_gpus,
        custom_resources_per_env_runner=dict(placement.engine_resources),
    )
    several = {"num_learners": placement.learners, "num_cpus_per_learner": 1} if placement.learners > 1 else {}
    settings.learners(num_gpus_per_learner=placement.learner_gpus, **several)
