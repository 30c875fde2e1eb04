"""What the rollouts' pages cost Ray's own dashboard, which asks them first: `pytest benchmarks/bench_dashboard.py -m slow -s`.

Two Rays of one machine, one with the pages in front and one without, are asked for the same paths in turn, and their pages are opened
in turn in Debian's Chromium, until what they show is there.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from burnish.inspector.pages.serve import behind_dashboard
from burnish.rpc.local_ray import start_local_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATHS = ("/nodes?view=summary", "/logical/actors", "/api/cluster_status", "/api/jobs/", "/api/serve/applications/")
PAGES = {"overview": "Cluster utilization", "cluster": "Node List", "actors": "Actors", "jobs": "Jobs", "logs": "Logs"}
"""Pages of Ray's, and a text that stands there once it is drawn."""
ROUNDS, WARM_UP, OPENED = 60, 5, 15
DEAREST, LONGEST_MS = 1.10, 10.0
"""What a page of Ray's may take, as a share of its time without ours, and what one request may wait for them."""


def serve(runs: str) -> None:
    """A Ray of its own until stdin ends; it says where its dashboard is. runs: a folder whose pages are in front, "" for none."""
    import ray

    with behind_dashboard(Path(runs)) if runs else nullcontext() as pages:
        started = start_local_ray(
            num_cpus=1, include_dashboard=True, log_to_driver=False, object_store_memory=100 * 2**20, proxy_server_url=pages
        )
        print(started.dashboard_url, flush=True)
        sys.stdin.read()
        ray.shutdown()


@contextmanager
def dashboard(runs: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.bench_dashboard", runs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield f"http://{next(line for line in process.stdout if ':' in line).strip()}"
        process.communicate(timeout=60)


def main_script(address: str) -> str:
    """Its name holds a digest."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        said = answer.read().decode()
    return "/static/js/main." + said.partition("static/js/main.")[2].partition('"')[0]


def seconds(opener: urllib.request.OpenerDirector, path: str, address: str) -> float:
    began = time.perf_counter()
    with opener.open(address + path, timeout=30) as answer:
        answer.read()
    return time.perf_counter() - began


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """A dashboard with the pages, one without, and the token of both."""
    with dashboard(str(tmp_path_factory.mktemp("runs"))) as ours, dashboard("") as plain:
        said = subprocess.run([Path(sys.executable).with_name("ray"), "get-auth-token"], capture_output=True, text=True, check=True)
        yield ours, plain, said.stdout.strip()


def in_turn(ours: str, plain: str, rounds: int, measure: Callable[[str], float]) -> tuple[float, float]:
    """Medians in milliseconds, with the pages and without; what is measured first changes."""
    taken: dict[str, list[float]] = {ours: [], plain: []}
    for i in range(rounds + WARM_UP):
        for address in (ours, plain) if i % 2 else (plain, ours):
            taken[address].append(measure(address))
    with_pages, without = (1e3 * statistics.median(taken[one][WARM_UP:]) for one in (ours, plain))
    return with_pages, without


def test_what_each_request_waits_for(both: tuple[str, str, str]) -> None:
    ours, plain, token = both
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.addheaders = [("Authorization", f"Bearer {token}")]
    for path in (main_script(ours), *PATHS):
        with_pages, without = in_turn(ours, plain, ROUNDS, partial(seconds, opener, path))
        print(f"\n{path}: {with_pages:.2f} ms with the pages, {without:.2f} ms without, {with_pages - without:+.2f} ms", end="")
        assert with_pages - without < LONGEST_MS, path


def test_rays_own_pages_take_no_longer_with_the_rollouts_in_front(both: tuple[str, str, str]) -> None:
    ours, plain, token = both
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    shares = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, text in PAGES.items():

            def opened(address: str, name: str = name, text: str = text) -> float:
                context = browser.new_context()  # nothing is kept of the time before
                context.add_cookies([{"name": "ray-authentication-token", "value": token, "url": address}])
                page = context.new_page()
                began = time.perf_counter()
                page.goto(f"{address}/#/{name}")
                page.locator("#root").get_by_text(text).last.wait_for()
                took = time.perf_counter() - began
                context.close()
                return took

            with_pages, without = in_turn(ours, plain, OPENED, opened)
            shares.append(with_pages / without)
            print(f"\n{name}: {with_pages:.0f} ms with the pages, {without:.0f} ms without, {shares[-1]:.3f}", end="")
        browser.close()
    print(f"\nin the middle {statistics.median(shares):.3f}, at most {max(shares):.3f} times")
    assert statistics.median(shares) < DEAREST


if __name__ == "__main__":
    serve(sys.argv[1])
