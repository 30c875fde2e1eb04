"""What services add to a bare gRPC stream, and how that compares with OpenEnv: steps per second of all of them, in one run.

`make bench` runs it (about five minutes) and writes `docs/services-performance.md`. `python -m benchmarks.bench_services` only prints.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from benchmarks.measuring import TEXT, Measured

from burnish.hosting.process import ServiceProcess

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SERVERS = Path(__file__).with_name("echo_server.py")
TABLE = ROOT / "docs" / "services-performance.md"
OPENENV = "openenv==0.10.0"
OPENENV_FOLDER = ROOT / "build" / "openenv"
EPISODES = (64, 512, 2048)
OPENENV_AIMS = {64: 5.0, 2048: 20.0}  # how many times the rate of OpenEnv's own
ROUNDS = 3
BAR = 0.5
RUN_S = 180.0  # longest that one measurement may take
INSTALL_S = 900.0
THREADS = 64

Found = dict[tuple[str, int], list[Measured]]
NAMES = {
    "echo": "bare echo",
    "async": "verifier, async handler",
    "sync": "verifier, sync handler",
    "unary": "verifier, unary calls",
    "env": "environment, on the event loop",
    "env_sync": f"environment, in {THREADS} threads",
    "env_threads": "environment, `RemoteEnv` in a thread per episode",
    "openenv": "OpenEnv, async handler",
    "openenv_sync": "OpenEnv, sync handler",
}
EVERY_ROUND = {"async": "stream", "env": "env"}
ONCE = {"sync": "stream", "env_sync": "env", "unary": "unary", "env_threads": "env_threads"}


@contextmanager
def program(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def own_server(*arguments: str) -> Iterator[str]:
    with program([sys.executable, "-m", "benchmarks.echo_server", *arguments]) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Kind -> address of its server."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        addresses = {"echo": stack.enter_context(own_server())}
        for kind, name in (("async", "nothing"), ("sync", "sync_nothing")):
            service = ServiceProcess("verifier", f"{SERVERS}:{name}", Path(folder) / f"{kind}.log")
            addresses[kind] = stack.enter_context(service).address
        for kind, threads in (("env", 0), ("env_sync", THREADS)):
            addresses[kind] = stack.enter_context(own_server(str(threads)))
        yield {**addresses, "unary": addresses["async"], "env_threads": addresses["env"]}


def run_client(command: Sequence[str]) -> Measured:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=RUN_S, check=True, cwd=ROOT)
    return Measured(**json.loads(done.stdout))


def client(kind: str, address: str, episodes: int) -> Measured:
    return run_client([sys.executable, "-m", "benchmarks.service_clients", kind, address, str(episodes)])


def run_own() -> Found:
    """Every way at every number of episodes; the echo again before each that is compared with it, so that whatever else the machine does
    meets both alike."""
    found: Found = {}
    with servers() as addresses:
        for episodes in EPISODES:
            for _ in range(ROUNDS):
                found.setdefault(("echo", episodes), []).append(client("echo", addresses["echo"], episodes))
                for kind, how in EVERY_ROUND.items():
                    found.setdefault((kind, episodes), []).append(client(how, addresses[kind], episodes))
            for kind, how in ONCE.items():
                if kind != "env_threads" or episodes <= THREADS:
                    found[kind, episodes] = [client(how, addresses[kind], episodes)]
    return found


# --------------------------------------------------------------------------------------------------------------------- OpenEnv


def install_openenv() -> str:
    """The Python of an environment with OpenEnv, made once. Raises CalledProcessError with pip's words when it cannot be."""
    python = OPENENV_FOLDER / "bin" / "python"
    if not python.exists():
        venv.create(OPENENV_FOLDER, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "-q", OPENENV]
    subprocess.run(pip, check=True, timeout=INSTALL_S, capture_output=True, text=True)
    return str(python)


@contextmanager
def openenv_server(python: str, handler: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with program([python, "-m", "benchmarks.openenv_side", "serve", str(port), handler]) as process:
        deadline = time.monotonic() + RUN_S
        while True:
            assert process.poll() is None, "OpenEnv's server ended"
            assert time.monotonic() < deadline, "OpenEnv's server does not listen"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"


def run_openenv() -> Found:
    """OpenEnv through its own client, and beside it burnish's environment and the echo again, which says what could be reached at all."""
    python = install_openenv()
    found: Found = {}
    with ExitStack() as stack:
        servers = {handler: stack.enter_context(openenv_server(python, handler)) for handler in ("async", "sync")}
        ours, bare = stack.enter_context(own_server("0")), stack.enter_context(own_server())
        for sessions in OPENENV_AIMS:
            measure = [python, "-m", "benchmarks.openenv_side", "measure"]
            for _ in range(ROUNDS):
                found.setdefault(("echo", sessions), []).append(client("echo", bare, sessions))
                found.setdefault(("env", sessions), []).append(client("env", ours, sessions))
                found.setdefault(("openenv", sessions), []).append(run_client([*measure, servers["async"], str(sessions)]))
                found.setdefault(("openenv_sync", sessions), []).append(run_client([*measure, servers["sync"], str(sessions)]))
    return found


# ------------------------------------------------------------------------------------------------------------------- the page


def ratio(found: Found, kind: str, other: str, episodes: int) -> float:
    """Median over the rounds of the rate of one kind over that of the other beside it."""
    pairs = zip(found[kind, episodes], found[other, episodes], strict=False)
    return statistics.median(own.rate / beside.rate for own, beside in pairs)


def rows(found: Found, beside: str) -> list[str]:
    lines = []
    for (kind, episodes), rounds in sorted(found.items(), key=lambda item: (item[0][1], list(NAMES).index(item[0][0]))):
        middle = sorted(rounds, key=lambda one: one.rate)[len(rounds) // 2]
        lines.append(
            f"| {episodes:,} | {NAMES[kind]} | {middle.rate:,.0f} | {ratio(found, kind, beside, episodes):.2f} | {middle.p50:.1f} "
            f"| {middle.p99:.1f} | {sum(one.lost for one in rounds)} |"
        )
    return lines


def openenv_part(found: Found | str) -> str:
    """The part of the page about OpenEnv; found: what was measured, or why nothing was."""
    if isinstance(found, str):
        return f"{OPENENV} could not be measured here:\n\n```\n{found}\n```\n"
    verdicts = []
    for sessions, aim in OPENENV_AIMS.items():
        times, ceiling = (ratio(found, kind, "openenv", sessions) for kind in ("env", "echo"))
        against_sync = ratio(found, "env", "openenv_sync", sessions)
        verdicts.append(
            f"At {sessions:,} sessions burnish makes {times:.1f} times the steps of OpenEnv's async handler and {against_sync:.1f} times "
            f"those of its sync handler; the aim of {aim:g} times the async one is {'met' if times >= aim else 'not met'}."
        )
        if ceiling < aim:
            verdicts.append(f"No service over grpc.aio could meet it here: the bare echo makes {ceiling:.1f} times.")
    table = "\n".join(rows(found, "openenv"))
    return f"""{OPENENV} in a Python of its own: its server, its client, one WebSocket per session, an environment that answers the same
text.

| sessions | way | steps/s | of OpenEnv, async | p50 ms | p99 ms | lost |
|---|---|---|---|---|---|---|
{table}

{" ".join(verdicts)}
"""


def write_page(own: Found, openenv: Found | str) -> None:
    load = os.getloadavg()[0]
    lines = "\n".join(rows(own, "echo"))
    text = f"""# How fast services are

`make bench` wrote this page, on {os.cpu_count()} cores with a load of {load:.1f} (this benchmark alone makes about 2). A step is one
verification of an episode of one message of {len(TEXT)} bytes, or one step of an environment with an action and an answer of that size; an
episode makes one step after the other. Verifiers and environments return at once, so what is measured is the way there and back.

The bare echo is a grpc.aio server and client of their own that send what is ready in one message over one stream, and do nothing else: no
deadlines, cancellation, typed errors, replicas, or conversion to and from the types that users see. "Of echo" is the median over
{ROUNDS} rounds (where a row was measured in each) of the rate beside the echo's in the same round. Milliseconds and rates are those of the
median round. Lost are steps without the right answer.

| episodes | way | steps/s | of echo | p50 ms | p99 ms | lost |
|---|---|---|---|---|---|---|
{lines}

A sync handler runs in one of 32 threads, so each step crosses threads twice. Unary calls are for other languages and by hand; burnish
itself makes them only to servers without the stream.

## Beside OpenEnv

{openenv_part(openenv)}"""
    TABLE.write_text(text, encoding="utf-8")


def measured_openenv() -> Found | str:
    try:
        return run_openenv()
    except subprocess.CalledProcessError as error:
        return f"{error}\n{error.stderr or ''}".strip()


def test_services_reach_half_of_a_bare_echo_and_lose_nothing() -> None:
    own, openenv = run_own(), measured_openenv()
    write_page(own, openenv)
    for (kind, episodes), rounds in own.items():
        assert [one.error for one in rounds if one.lost] == [], (kind, episodes)
    reached = {(kind, episodes): ratio(own, kind, "echo", episodes) for kind in EVERY_ROUND for episodes in EPISODES}
    assert {key: value for key, value in reached.items() if value < BAR} == {}
    assert not isinstance(openenv, str), openenv
    for sessions in OPENENV_AIMS:
        assert sum(one.lost for one in openenv["env", sessions]) == 0
        assert ratio(openenv, "env", "openenv", sessions) > 1
        ours, theirs = (statistics.median(one.p99 for one in openenv[kind, sessions]) for kind in ("env", "openenv"))
        assert ours < theirs


if __name__ == "__main__":
    print("\n".join(rows(run_own(), "echo")))
    print(openenv_part(measured_openenv()))
