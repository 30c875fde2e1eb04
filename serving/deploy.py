"""Serving a checkpoint: a Ray Serve deployment around vLLM's OpenAI application.

`start_serving` gives a URL that the `openai` client talks to and a handle that ends it. Ray is started when it is not running, and ended
again only when it was started here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp

from ..guardrails.guard import Guard
from ..rollout.engine.config import EngineConfig
from ..rpc.local_ray import start_local_ray
from ..rpc.signals import keep_sigterm
from ..trainer.models.finding import verified_model
from ..trainer.models.manifest import own_manifest
from .app import chat_service
from .config import ServingConfig, serving_options
from .engine import start_engine
from .rules import Rules, front_of, load_plugins, most_under_way, read_rules

_log = logging.getLogger(__name__)

APP_NAME: Final = "burnish-chat"
OBJECT_STORE_BYTES: Final = 80 * 2**20
ROOM: Final = 128
"""Requests beyond those that may be under way, which are being refused, or ask for no answer."""
NEVER_LENT: Final = range(20_000, 32_000)
"""Ports that no connection is given as its own end, so that one stays free between being found so and being listened on."""
TRIED: Final = 50
ASKED_S: Final = 5.0
"""How long a service that is to end may take to say what it has."""
LAST_S: Final = 0.5
"""For the last of an answer to get from the service through what listens to its client."""
POLL_S: Final = 0.2
GRACE_S: Final = 5.0
"""How much longer Serve waits than an answer may take, so that the service itself says in OpenAI's words that it was late."""
CONTROLLER_ENDS: Final = "Task ServeController."
"""Ray prints of these that they failed: Serve's controller, asked to shut down, ends before it has answered whoever asked it last."""


@serve.ingress()
class ChatService:
    """One replica: an engine on the model and the service in front of it."""

    async def __init__(self, model: str, name: str, options: ServingConfig, rules: Rules) -> None:  # type: ignore[misc]  # Serve awaits it
        load_plugins(options.plugins)
        self._name = name
        self._guard = Guard(rules.policy) if rules.policy is not None else None
        self._front, self._looks = front_of(rules, options, most_under_way(options)), options.max_concurrent
        self._judge_calls = options.max_judge_calls
        self._engine = await start_engine(Path(model), name, options)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return chat_service(
            self._engine.app, lambda: (self._name,), self._front, self._guard, looks=self._looks, judge_calls=self._judge_calls
        )

    async def drain(self) -> int:
        """See `RequestAdmission.drain`."""
        return self._front.admission.drain()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self._engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):  # absent when the constructor raised
            self._engine.close()


@dataclass(frozen=True)
class ServingHandle:
    """A running chat service. Use it as a context manager, or call `stop`.

    url: base of the API, for example `http://127.0.0.1:8000`; the `openai` client takes `url + "/v1"`. name: the model to ask for.
    ready_timeout_s: how long the service may be silent while an engine is started in a lost one's place. answer_s: how long its end waits
    for the answers that it has.
    """

    url: str
    name: str
    owns_ray: bool
    ready_timeout_s: float
    answer_s: float

    def wait(self, poll_s: float = 5.0) -> None:
        """Return never while the service answers. Raises RuntimeError once it was silent for `ready_timeout_s`; Ctrl-C passes through."""
        answered = time.monotonic()
        while True:
            time.sleep(poll_s)
            if is_ready(self.url):
                answered = time.monotonic()
            elif time.monotonic() - answered > self.ready_timeout_s:
                said = status_message() or "nothing took the place of what was lost"
                raise RuntimeError(f"the chat service at {self.url} has not answered for {self.ready_timeout_s:.0f} s: {said}")

    def stop(self) -> None:
        """End the service once it has answered what it has, its engine, and Ray if it was started for it. Safe to call twice."""
        try:
            drain(APP_NAME, self.answer_s)
        finally:
            stop_serving(self.owns_ray)

    def __enter__(self) -> ServingHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()


def start_serving(checkpoint: str | Path, port: int = 8000, name: str | None = None, config: ServingConfig | None = None) -> ServingHandle:
    """Serve a checkpoint (a run, a checkpoint folder, a model folder or a model's name) and return once it answers.

    port: 0 takes a free one. name: what clients ask for, the model's recorded name when None. config: everything else.
    Raises ValueError when the checkpoint is not sound, the API keys cannot be read, the port is taken, or this Ray already serves
    something; RuntimeError with the replica's own message when it does not answer within `ready_timeout_s`, having ended what was started.
    """
    options = serving_options(config or ServingConfig(), port=port, **({"name": name} if name else {}))
    if options.device == "auto":
        options = serving_options(options, device=EngineConfig().resolved_device)
    rules = read_rules(options)
    model = verified_model(checkpoint)
    manifest = own_manifest(model)
    served_name = options.name or (manifest.name if manifest is not None else model.name)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress lines say what this call's return says
    with free_port(options.host, options.port) as free:
        owns_ray = start_ray(options, options.threads)
    url = url_of(options, free)
    try:
        _deploy(model, served_name, options, rules, free, url)
    except BaseException:
        stop_serving(owns_ray)
        raise
    return ServingHandle(url, served_name, owns_ray, options.ready_timeout_s, options.request_timeout_s)


@contextlib.contextmanager
def free_port(host: str, port: int) -> Iterator[int]:
    """Hold the port while Ray starts, and let go of it for Serve's proxy; 0 is any. Raises ValueError when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        refused = OSError()
        for tried in (port,) if port else random.sample(NEVER_LENT, TRIED):
            try:
                held.bind((host, tried))
            except OSError as error:
                refused = error
            else:
                yield tried
                return
        raise ValueError(f"cannot listen on {host}:{port}: {refused.strerror}; stop what uses it or give another --port") from refused


def start_ray(options: ServingConfig, cpus: int) -> bool:
    """Start a small Ray of so many CPUs unless one is running; say whether it was started. Raises ValueError when it serves something."""
    if ray.is_initialized():
        if serve.status().proxies:
            raise ValueError("this Ray session already serves an application; stop it before serving another")
        return False
    gpus = _gpus_here() if options.device == "cuda" else 0
    if options.device == "cuda" and not gpus:  # Ray would take our word for it, and vLLM fail minutes later
        raise ValueError("device cuda: torch sees no GPU on this machine; use --device cpu")
    with keep_sigterm():
        start_local_ray(
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return True


def _gpus_here() -> int:
    import torch

    return int(torch.cuda.device_count())


def url_of(options: ServingConfig, port: int) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"{'https' if options.tls_cert else 'http'}://{host}:{port}"


def _deploy(model: Path, name: str, options: ServingConfig, rules: Rules, port: int, url: str) -> None:
    resources: dict[str, Any] = {"num_cpus": options.threads, "num_gpus": 1 if options.device == "cuda" else 0}
    deployment = serve.deployment(
        ChatService,
        name="chat",
        ray_actor_options=resources,
        # The service itself says when there are too many, in OpenAI's words, and counts them. What is beyond its bound and some room is
        # told 503 by Serve, whose own queue would have no end.
        max_ongoing_requests=most_under_way(options) + ROOM,
        max_queued_requests=ROOM,
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=5.0,
    )
    start_proxy(options, port)
    starting = Starting(deployment.bind(str(model), name, options, rules), APP_NAME, "/")
    deadline = time.monotonic() + options.ready_timeout_s
    while not (starting.is_over() and is_ready(url)):
        if time.monotonic() > deadline:
            said = status_message() or "its replica is still starting"
            raise RuntimeError(f"the chat service did not answer within {options.ready_timeout_s:.0f} s: {said}")
        time.sleep(POLL_S)


class Starting:
    """Runs an application of Serve's. `serve.run` waits without a deadline of its own, hence beside whoever keeps one."""

    def __init__(self, app: Any, name: str, route: str | None) -> None:
        self._name, self._failure = name, list[BaseException]()

        def run() -> None:
            try:
                serve.run(app, name=name, route_prefix=route)
            except BaseException as error:
                self._failure.append(error)

        self._thread = threading.Thread(target=run, daemon=True, name=f"serve-run-{name}")
        self._thread.start()

    def is_over(self) -> bool:
        """Whether it runs. Raises RuntimeError with the replica's own message when it never will."""
        if self._failure:
            raise RuntimeError(f"{self._name} did not start: {status_message(self._name) or self._failure[0]}") from self._failure[0]
        return not self._thread.is_alive()


def start_proxy(options: ServingConfig, port: int) -> None:
    """Start what listens."""
    http = serve.HTTPOptions(
        host=options.host,
        port=port,
        request_timeout_s=options.request_timeout_s + GRACE_S,
        ssl_certfile=options.tls_cert or None,
        ssl_keyfile=options.tls_key or None,
    )
    serve.start(http_options=http, proxy_location="HeadOnly")


def is_ready(url: str) -> bool:
    """Whether `/health` answers 200.

    Asked directly: a proxy that the environment names does not know this machine's ports. The certificate may be made out to another name
    than the one that is listened on: it is not checked, and nothing is sent.
    """
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked))
    try:
        with direct.open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, HTTPException):  # URLError is an OSError
        return False


def status_message(name: str = APP_NAME) -> str:
    """What Serve says about an application: the replica's own exception when it has one."""
    application = serve.status().applications.get(name)
    if application is None:
        return ""
    parts = [application.message, *(deployment.message for deployment in application.deployments.values())]
    return "\n".join(part for part in parts if part)


def drain(name: str, seconds: float) -> None:
    """Have an application let nobody in any more, and return once it has answered what it has, or after so many seconds.

    Serve, when it is ended, first ends what listens, and with that every answer that is on its way.
    """
    if not ray.is_initialized():
        return
    deadline, had = time.monotonic() + seconds, 0
    try:
        application = serve.get_app_handle(name)
        while (left := application.drain.remote().result(timeout_s=ASKED_S)) and time.monotonic() < deadline:
            if not had:
                _log.warning("%d answers are awaited for at most %.0f s; Ctrl-C ends them now", left, seconds)
            had = left
            time.sleep(POLL_S)
    except (RayError, RayServeException, TimeoutError):
        return  # whatever it was answering is lost with it
    if had:
        time.sleep(LAST_S)


def stop_serving(owns_ray: bool) -> None:
    """End all that Serve serves, and Ray if it was started for it."""
    if ray.is_initialized():
        with WithoutLine(sys.stdout, CONTROLLER_ENDS) as lines, contextlib.redirect_stdout(lines):
            serve.shutdown()
            if owns_ray:
                ray.shutdown()


class WithoutLine(io.TextIOBase):
    """Passes lines on to `out`, except those that hold `part`. What is left of a line goes out when it is closed."""

    def __init__(self, out: TextIO, part: str) -> None:
        self._out, self._part, self._rest = out, part, ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        self._out.write("".join(f"{line}\n" for line in whole if self._part not in line))
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        if not self.closed:
            self._out.write(self._rest)
        super().close()
