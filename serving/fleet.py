"""`burnish deploy`: what a deployment file says, running on Ray Serve, and following the file while it is edited."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ray import serve

from ..guardrails.policy import Policy
from ..rollout.engine.config import EngineConfig
from .adapters import find_adapters
from .canary.config import JudgeTable
from .canary.judge import CanaryJudge, judge_of
from .canary.rollbacks import Rollbacks, rollbacks_file
from .canary.watch import MOST_UNDER_WAY, Judgement
from .config import ServingConfig, serving_options
from .deploy import ROOM, Starting, drain, free_port, is_ready, start_proxy, start_ray, status_message, stop_serving, url_of
from .deployment import LASTING_S, Deployer, Deployment, Faults, State, VersionFleet, VersionTable, read_deployment, said_of
from .gateway import GATEWAY, EngineReplica, Gateway
from .promotion import servable_model
from .routes import Routes, app_name, judge_name
from .rules import Rules, most_under_way, read_rules

POLL_S: Final = 0.25
FileState = tuple[int, int, int, int]
MOST_ON_THE_WAY: Final = 10_000
"""Requests that wait for the gateway itself, which refuses in time what is too much: those of a moment, or while it starts anew."""
CALL_S: Final = 60.0
"""How long the gateway may take to take a word."""
LOCAL_CPUS: Final = 256
"""What a Ray of one's own says this machine has: how many engines share its cores is for whoever wrote the file to say."""


class ServeFleet:
    """Versions as applications of Ray Serve, and the gateway's routes. For one thread."""

    def __init__(self, options: ServingConfig, policy: Policy | None) -> None:
        self._options, self._policy = options, policy
        self._starting: dict[str, Starting] = {}
        self._judges: dict[str, Starting] = {}
        self._judgements: Mapping[str, Judgement] = {}
        self._found: dict[str, tuple[State, str]] = {}

    def start(self, name: str, table: VersionTable) -> None:
        options = self._options
        try:
            model = servable_model(table, self._policy)
            adapters = find_adapters(table.adapters, model)
            if table.judge is not None:
                judge_of(table.judge)
        except ValueError as error:
            self._found[name] = ("failed", str(error))
            return
        deployment = serve.deployment(
            EngineReplica,
            name="model",
            **replicas_of(table, options),
            ray_actor_options={"num_cpus": options.threads, "num_gpus": 1 if options.device == "cuda" else 0},
            max_ongoing_requests=most_under_way(options),
            max_queued_requests=ROOM,
            graceful_shutdown_timeout_s=options.request_timeout_s,  # longer than the longest answer
            graceful_shutdown_wait_loop_s=0.5,
            health_check_period_s=5.0,
        )
        self._starting[name] = Starting(deployment.bind(str(model), name, options, adapters), app_name(name), None)
        if table.judge is not None:
            self._judges[name] = _start_judge(name, table.judge)

    def state(self, name: str) -> tuple[State, str]:
        if name not in self._found:
            try:
                if not all(one.is_over() for one in (self._starting[name], self._judges.get(name)) if one is not None):
                    return "starting", ""
                self._found[name] = ("ready", "")  # from then on Serve starts anew what dies
            except RuntimeError as error:
                self._found[name] = ("failed", str(error))
        return self._found[name]

    def stop(self, name: str) -> None:
        self._found.pop(name, None)
        found = {app_name(name): self._starting.pop(name, None), judge_name(name): self._judges.pop(name, None)}
        for app, one in found.items():
            if one is not None:
                threading.Thread(target=serve.delete, args=(app,), daemon=True, name=f"serve-delete-{app}").start()

    def route(self, routes: Routes, started: bool) -> None:
        self._judgements = serve.get_app_handle(GATEWAY).follow.remote(routes, started).result(timeout_s=CALL_S)

    def judgements(self) -> Mapping[str, Judgement]:
        return self._judgements


def _start_judge(name: str, table: JudgeTable) -> Starting:
    deployment = serve.deployment(
        CanaryJudge,
        name="judge",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MOST_UNDER_WAY,
        max_queued_requests=MOST_UNDER_WAY,
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=5.0,
    )
    return Starting(deployment.bind(table), judge_name(name), None)


def replicas_of(table: VersionTable, options: ServingConfig) -> dict[str, Any]:
    """What Ray Serve is told of how many replicas there are."""
    scale = table.autoscaling
    if scale is None:
        return {"num_replicas": table.replicas}
    target = scale.target_ongoing_requests or options.max_concurrent
    return {"autoscaling_config": {**scale.model_dump(), "initial_replicas": scale.min_replicas, "target_ongoing_requests": target}}


class DeploymentHandle:
    """A deployment that runs and follows its file. Use it as a context manager, or call `stop`. url: base of the API."""

    def __init__(
        self,
        file: Path,
        read: tuple[Deployment, FileState],
        fleet: VersionFleet,
        url: str,
        owns_ray: bool,
        say: Callable[[str], None],
    ) -> None:
        """read: what the file said, and what it was then; an edit since is followed from the start on."""
        self.url, self._file, self._owns_ray, self._say = url, file, owns_ray, say
        self._deployment, self._seen = read
        self._deployer = Deployer(fleet, say, Rollbacks(rollbacks_file(file)))
        self._over = threading.Event()
        self._error: Exception | None = None
        self._following = threading.Thread(target=self._follow, daemon=True, name="burnish-deployment")

    def start(self) -> None:
        """Return once every model is answered. Raises RuntimeError when that is not so in `ready_timeout_s` seconds a version."""
        deadline = time.monotonic() + self._deployment.service.ready_timeout_s * len(self._deployment.served())
        self._deployer.turn(self._deployment)
        while not (self._deployer.ready(self._deployment) and is_ready(self.url)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the deployment did not answer in time: {status_message() or 'its versions are still starting'}")
            time.sleep(POLL_S)
            self._read_again()
            self._deployer.turn(self._deployment)
        self._following.start()

    def wait(self) -> None:
        """Return never while the file is followed. Raises what ended that."""
        while self._following.is_alive():
            self._following.join(1.0)
        assert self._error is not None, "it ends when it is over, or by a fault"
        raise RuntimeError(f"the deployment is no longer followed: {said_of(self._error)}") from self._error

    def stop(self) -> None:
        """End every version, the gateway, and Ray if it was started for it, once all is answered that is under way. Safe to call twice."""
        self._over.set()
        if self._following.is_alive():
            self._following.join(CALL_S)
        try:
            drain(GATEWAY, self._deployment.service.request_timeout_s)
        finally:
            stop_serving(self._owns_ray)

    def __enter__(self) -> DeploymentHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def _follow(self) -> None:
        """Until it is over, or a fault lasts: a gateway that is being replaced, or a file that cannot be read now, passes."""
        faults = Faults(self._say, max(LASTING_S, self._deployment.service.ready_timeout_s))  # what is lost is started anew meanwhile
        while not self._over.wait(faults.wait_s):
            try:
                self._read_again()
                self._deployer.turn(self._deployment)
            except Exception as error:
                if faults.lasting(error):
                    self._error = error
                    return
            else:
                faults.over()

    def _read_again(self) -> None:
        """What the file says now, where that can be followed; else what it said before."""
        with contextlib.suppress(FileNotFoundError):  # for a moment, while an editor puts another in its place
            seen = _state_of(self._file)
            if seen == self._seen:
                return
            try:
                changed = read_deployment(self._file)
                changed = changed.model_copy(update={"service": _on_this_machine(changed.service)})
                self._deployer.check(changed, self._deployment)
                self._deployment = changed
            except ValueError as error:
                self._say(f"not followed: {error}")
            self._seen = seen


def _state_of(file: Path) -> FileState:
    """What is another once a file was written, put in another's place, or made readable."""
    found = file.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def start_deployment(file: Path, say: Callable[[str], None]) -> DeploymentHandle:
    """Deploy what a file says and return once all of it answers. say: called with a line for each thing that happens, then and later.

    Raises ValueError when the file, a model, the keys or the policy cannot be read, or the port is taken; RuntimeError when a version does
    not start, having ended what was started.
    """
    try:
        seen = _state_of(file)  # before it is read: what is written meanwhile is read once more
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    deployment = read_deployment(file)
    options = _on_this_machine(deployment.service)
    rules = read_rules(options)
    for table in deployment.served().values():
        find_adapters(table.adapters, servable_model(table, rules.policy))  # what is wrong is said before anything starts
        if table.judge is not None:
            judge_of(table.judge)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with free_port(options.host, options.port) as port:
        owns_ray = start_ray(options, LOCAL_CPUS)
    deployment = deployment.model_copy(update={"service": options})
    handle = DeploymentHandle(file, (deployment, seen), ServeFleet(options, rules.policy), url_of(options, port), owns_ray, say)
    try:
        _start_gateway(options, rules, port)
        handle.start()
    except BaseException:
        handle.stop()
        raise
    return handle


def _start_gateway(options: ServingConfig, rules: Rules, port: int) -> None:
    start_proxy(options, port)
    gateway: Any = serve.deployment(
        Gateway,
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=100_000,  # it bounds what it lets in itself, and says so in OpenAI's words
        max_queued_requests=MOST_ON_THE_WAY,
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=5.0,
    )
    starting, deadline = Starting(gateway.bind(options, rules), GATEWAY, "/"), time.monotonic() + options.ready_timeout_s
    while not starting.is_over():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not start within {options.ready_timeout_s:.0f} s: {status_message(GATEWAY)}")
        time.sleep(POLL_S)


def _on_this_machine(options: ServingConfig) -> ServingConfig:
    return serving_options(options, device=EngineConfig().resolved_device) if options.device == "auto" else options
