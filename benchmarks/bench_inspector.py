"""The pages over a million stored rollouts: `pytest benchmarks/bench_inspector.py -m slow -s`.

`burnish inspect` runs as a process of its own, and is asked over HTTP for whole pages: lists by every filter and order, searches for words
of all frequencies, and the other pages. BURNISH_ROLLOUTS says how many rollouts, BURNISH_STORED where a folder of runs is or is to be made.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import quote
from urllib.request import HTTPCookieProcessor, build_opener

import numpy as np
import pytest
from benchmarks.stored_rollouts import COMMON, EACH, MEDIUM, RARE, TASKS, write_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

ROLLOUTS = int(os.environ.get("BURNISH_ROLLOUTS", "1000000"))
RUN = "made-up"
TABLE_S, PAGE_S, MEMORY_MB = 0.3, 1.0, 500
ROUNDS = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("BURNISH_STORED") or tmp_path_factory.mktemp("runs"))
    if not (folder / RUN).is_dir():
        begun = time.perf_counter()
        write_run(folder / RUN, ROLLOUTS)
        print(f"\n{ROLLOUTS:,} rollouts written in {time.perf_counter() - begun:.0f} s")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "burnish.cli.main", "inspect", str(runs), "--port", "0"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert started.stdout is not None
    yield re.split(r"\s", started.stdout.readline())[1], started
    started.terminate()
    started.wait(60)


def questions(steps: int) -> tuple[list[str], list[str], list[str]]:
    """Lists, searches and other pages, as what follows the run's address."""
    rng = np.random.default_rng(1)
    lists, searches, others = list[str](), list[str](), list[str]()
    for _ in range(ROUNDS):
        step, task = (int(rng.integers(1, steps + 1)) for _ in range(2))
        lists += ["order=latest", "order=worst", "order=best", "order=longest", "order=slowest", "failed=yes", "failed=no&order=worst"]
        lists += [
            f"step={step}&order=worst",
            f"task=train-{task * TASKS}",
            "truncation=tokens",
            f"page={1 + step % 199}",
            "engine=rollout-1",
            "part=brevity&order=part lowest",
            "part=env&part_from=0.999&order=part highest",
            "tool=measure&order=worst",
            f"reward_from={step / steps}&order=by task",
            "order=newest weights",
        ]
        searches += [COMMON, MEDIUM, f"{RARE}{task * TASKS}", f"{COMMON} {MEDIUM}", f"{MEDIUM[1:-1]} gauge", "nobody said", "koba", "er"]
        moment = f"phase=rft&step={step}&split=train&mode=sampled"
        others += [
            "",
            f"/episode?{moment}&episode=train-{(step - 1) * TASKS}/3",
            f"/episode?{moment}&episode=train-{(step - 1) * TASKS}/3&json=1",
        ]
    return lists, searches, others


class Asker:
    """Asks the server for pages. taken: of each, seconds until it is whole, and seconds of processors that the server spent on it, which
    other work on the machine does not change."""

    def __init__(self, pid: int) -> None:
        self._opener, self._pid = build_opener(HTTPCookieProcessor(CookieJar())), pid

    def get(self, address: str) -> bytes:
        with self._opener.open(address, timeout=600) as answer:
            said: bytes = answer.read()
        assert answer.status == 200 and said
        return said

    def taken(self, address: str) -> tuple[float, float]:
        begun, spent = time.perf_counter(), self._spent()
        self.get(address)
        return time.perf_counter() - begun, self._spent() - spent

    def _spent(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told(name: str, taken: list[tuple[float, float]]) -> float:
    """Print what pages took; the 95th percentile of the seconds."""
    seconds, spent = zip(*taken, strict=True)
    p50, p95 = (float(value) for value in np.quantile(seconds, [0.5, 0.95]))
    processors = [1e3 * float(value) for value in np.quantile(spent, [0.5, 0.95])]
    print(
        f"{name:<20} n {len(taken):>3}  median {1e3 * p50:6.0f} ms  95th percentile {1e3 * p95:6.0f} ms"
        f"  processor time {processors[0]:5.0f} and {processors[1]:5.0f} ms"
    )
    return p95


def resident_mb(pid: int, what: str = "VmRSS") -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def test_a_million_rollouts_are_listed_searched_and_shown_within_the_bars(runs: Path, server: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = server
    asker = Asker(process.pid)
    asker.get(address)
    run = f"{address.partition('?')[0]}/{RUN}"
    store = runs / RUN / "episodes"
    first, _ = asker.taken(f"{run}/episodes")
    begun = time.perf_counter()
    while b"An index of this run is being made" in asker.get(f"{run}/episodes?order=worst"):
        time.sleep(2)
    took, peak = time.perf_counter() - begun, resident_mb(process.pid, "VmHWM")
    sizes = [sum(file.stat().st_size for file in store.glob(pattern)) / 2**20 for pattern in ("*.parquet", ".index/*/*")]
    steps = len(list(store.glob("*.parquet")))
    print(f"\n{steps * EACH:,} rollouts in {steps:,} files: store {sizes[0]:,.0f} MB, index {sizes[1]:,.0f} MB made in {took:.0f} s")
    print(f"first list, while there was none {first:.1f} s")
    lists, searches, others = questions(steps)
    listed = told("table", [asker.taken(f"{run}/episodes?{quote(one, safe='=&')}") for one in lists])
    by_words = [(word, asker.taken(f"{run}/episodes?order=worst&text={quote(word)}")) for word in searches]
    searched = told("search", [took for _, took in by_words])
    for word in dict.fromkeys(searches[:8]):
        told(f"  {word[:20]}", [took for other, took in by_words if other == word])
    paged = told("page", [asker.taken(f"{run}{one}") for one in others])
    memory = resident_mb(process.pid), resident_mb(process.pid, "VmHWM")
    print(f"server {memory[0]:.0f} MB, at most {memory[1]:.0f} MB ({peak:.0f} MB while the index was made)")
    assert (listed < TABLE_S, searched < TABLE_S, paged < PAGE_S, memory[1] < MEMORY_MB) == (True, True, True, True)
