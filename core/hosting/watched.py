"""Deployments and services that somebody wants to see on the console page, asked how they are: those named to `burnish inspect` with
`--deployment` and `--service`, and those of the recipe of a run, on its dashboard."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from burnish.inspector.console import Health, VersionLine, WatchedPlace, WatchedPlaces
from burnish.rewards.calling.threads import Daemons
from burnish.rpc.address import Endpoint, shown_address
from burnish.rpc.errors import RpcError
from burnish.rpc.probe import health_of
from burnish.rpc.urls import check_url, without_secrets
from burnish.serving.canary.rollbacks import Rollbacks, rollbacks_file
from burnish.serving.deployment import VersionTable, read_deployment
from burnish.serving.routes import served_name

_log = logging.getLogger(__name__)

ASK_S = 2.0
"""How long a place may take to answer."""
SPARE_S = 0.5
"""How much later a look ends than a place may answer."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What listens on all addresses is asked here."""
TOLD = "What burnish inspect was told to watch with --deployment and --service."
OF_RECIPE = "What the recipe of the run that goes on names: its services, and what resources.watch adds."


@dataclass(frozen=True, slots=True)
class AskedPlace:
    """A place and how it is asked. address: of a gRPC service, with what it takes to reach it; "" of HTTP, asked at the place's url."""

    place: WatchedPlace
    address: str = ""


def watched_places(deployments: Sequence[Path], services: Sequence[str]) -> WatchedPlaces:
    """What to watch. deployments: files as `burnish deploy` takes them, read anew at each look, as they may be edited. services: addresses,
    `http://host:port` of a chat service or `host:port` of a verifier, tools or an environment.

    Raises ValueError when a file cannot be read or an address is none.

    Example: `watched_places([Path("inspector.toml")], ["127.0.0.1:50051"]).look()`.
    """
    return _watching(deployments, [_named(service, "--service") for service in services], TOLD)


def watched_by_run(services: Mapping[str, str], watch: Sequence[str]) -> WatchedPlaces | None:
    """What the dashboard of a run watches, None for nothing. services: addresses by the names that the recipe has for them, `ray:NAME` not
    among them. watch: further addresses, and deployment files, whose names end in `.toml`.

    Raises ValueError when a file cannot be read or an address is none.

    Example: `watched_by_run({"verdicts": "127.0.0.1:50051"}, ["inspector.toml", "http://127.0.0.1:8000"])`.
    """
    files = [Path(one) for one in watch if one.endswith(".toml")]
    named = [AskedPlace(WatchedPlace(name, Health("unknown"), shown_address(address)), address) for name, address in services.items()]
    named += [_named(one, "resources.watch:") for one in watch if not one.endswith(".toml")]
    return _watching(files, named, OF_RECIPE) if files or named else None


def _watching(deployments: Sequence[Path], named: Sequence[AskedPlace], why: str) -> WatchedPlaces:
    for file in deployments:
        read_deployment(file)

    def look() -> Sequence[WatchedPlace]:
        return _looked_at([*(_read_alone(file) for file in deployments), *named])

    return WatchedPlaces(look, why)


def _named(service: str, what: str) -> AskedPlace:
    """What somebody named. what: where, as errors say it. Raises ValueError when it is no address that can be asked."""
    if service.lower().startswith(("http://", "https://")):
        check_url(service, None)
        parts = urlsplit(service)
        try:
            fits = parts.port != 0
        except ValueError:  # no number, or above 65535
            fits = False
        if not fits or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{what} {service!r} must read http://host:port, for example http://127.0.0.1:8000")
        return AskedPlace(_over_http(service, service.rstrip("/").removesuffix("/v1")))
    if Endpoint.parse(service).ray_name:
        raise ValueError(f"{what} {service!r} is known to a Ray cluster only; give the address of a replica, host:port")
    shown = shown_address(service)
    return AskedPlace(WatchedPlace(shown, Health("unknown"), shown), service)


def _over_http(name: str, url: str) -> WatchedPlace:
    return WatchedPlace(name, Health("unknown"), url, f"{url}/metrics")


def _read_alone(file: Path) -> AskedPlace:
    """`_deployed`; a file that fails in a way that nobody thought of is a problem of its own place, and not of the others."""
    try:
        return _deployed(file)
    except Exception as error:
        _log.warning("%s could not be read for the console page", file, exc_info=True)
        return AskedPlace(WatchedPlace(str(file), Health("unknown"), problem=f"could not be read: {_said(error)}"))


def _deployed(file: Path) -> AskedPlace:
    try:
        deployment, out = read_deployment(file), Rollbacks(rollbacks_file(file))
    except (OSError, ValueError) as error:
        return AskedPlace(WatchedPlace(str(file), Health("unknown"), problem=str(error)))
    service, lines = deployment.service, list[VersionLine]()
    for model, table in deployment.models.items():
        weights = {name: 0.0 if _is_out(out, model, name, one) else one.weight for name, one in table.versions.items()}
        total = sum(weights.values())
        for name, one in table.versions.items():
            rolled_back = _is_out(out, model, name, one)
            share = weights[name] / total if total else 0.0
            lines.append(VersionLine(served_name(model, name), one.model, share, one.shadow, _replicas(one), _notes(one), rolled_back))
    host = EVERYWHERE.get(service.host, service.host)
    url = f"{'https' if service.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{service.port}"
    place = _over_http(str(file), url if service.port else "")
    return AskedPlace(replace(place, metrics=place.metrics if service.port else "", versions=tuple(lines)))


def _is_out(rollbacks: Rollbacks, model: str, version: str, table: VersionTable) -> bool:
    return table.judge is not None and rollbacks.has(served_name(model, version), table.model)


def _replicas(table: VersionTable) -> str:
    scale = table.autoscaling
    return f"{scale.min_replicas} to {scale.max_replicas}" if scale is not None else str(table.replicas)


def _notes(table: VersionTable) -> tuple[str, ...]:
    canary = ("a canary, judged",) if table.judge is not None else ()
    forced = (f"forced: {table.forced}",) if table.forced else ()
    return (*canary, *(f"adapter {name}" for name in table.adapters), *forced)


def _looked_at(asked: Sequence[AskedPlace]) -> list[WatchedPlace]:
    """All at once, each on a thread of its own: a name that does not resolve holds its thread for as long as the system tries."""
    threads = Daemons("console")
    answers = [threads.submit(asyncio.run, _asked_alone(one)) for one in asked]
    wait(answers, ASK_S + SPARE_S)
    return [answer.result() if answer.done() else _silent(one.place) for one, answer in zip(asked, answers, strict=True)]


def _silent(place: WatchedPlace) -> WatchedPlace:
    return replace(place, health=Health("unreachable", f"no answer within {ASK_S:g} s"))


async def _asked_alone(asked: AskedPlace) -> WatchedPlace:
    """`_looked_at_one`; a place that fails in a way that nobody thought of is shown so, beside the others."""
    try:
        return await _looked_at_one(asked)
    except Exception as error:
        _log.warning("%s could not be asked for the console page", asked.place.name, exc_info=True)
        return replace(asked.place, health=Health("unknown", f"could not be asked: {_said(error)}"))


def _said(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {without_secrets((str(error).splitlines() or [''])[0])[:300]}".removesuffix(": ")


async def _looked_at_one(asked: AskedPlace) -> WatchedPlace:
    place = asked.place
    if not place.url:
        known = "" if place.problem else "its file leaves the port open: name the address that `burnish deploy` said, too (--service)"
        return replace(place, health=Health("unknown", known))
    began = time.monotonic()
    try:
        if asked.address:
            said = await asyncio.to_thread(health_of, asked.address, "", ASK_S)
            answer = "" if said == "SERVING" else f"its health service says {said}"
        else:
            status = await asyncio.wait_for(_http_status(f"{place.url}/health"), ASK_S)
            answer = "" if status == HTTPStatus.OK else f"/health answered {status}"
    except TimeoutError:
        return _silent(place)
    except (OSError, RpcError, ValueError) as error:
        return replace(place, health=Health("unreachable", (str(error).splitlines() or [type(error).__name__])[0][:300]))
    return replace(place, health=Health("unhealthy" if answer else "healthy", answer, time.monotonic() - began))


async def _http_status(url: str) -> int:
    """The status of an answer, whose text is not read, and which leads nowhere else. A certificate may be made out to another name than the
    one that is asked: it is not checked, and nothing is sent. Raises OSError when there is no answer."""
    import httpx2

    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        async with (
            httpx2.AsyncClient(trust_env=False, follow_redirects=False, verify=unchecked, timeout=ASK_S) as client,
            client.stream("GET", url) as answer,
        ):
            return int(answer.status_code)
    except httpx2.HTTPError as error:
        raise OSError(str(error) or type(error).__name__) from error
