"""A driver that is killed leaves no process of the Ray that it had started, and takes no process of another."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DRIVER = """
import logging
import ray
from burnish.rpc.local_ray import start_local_ray

start_local_ray(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=100 * 2**20)

@ray.remote
class Counter:
    def add(self, number):
        return number + 1

counter = Counter.remote()
for line in iter(input, "end"):
    print(ray.get(counter.add.remote(int(line))), flush=True)
ray.shutdown()
input()
"""
ENDED_S = 45.0
"""Ray's agents alone would take 60 and more; on an idle machine it is about six."""


@contextmanager
def driver() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], number: int) -> int:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def names(processes: list[psutil.Process]) -> list[str]:
    """Of those that still run."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


def wait_for_none(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + ENDED_S
    while names(processes):
        assert time.monotonic() < deadline, f"still there: {names(processes)}"
        time.sleep(0.2)


def test_a_killed_driver_leaves_nothing_of_its_ray_and_no_other_is_touched() -> None:
    with driver() as killed, driver() as other:
        assert (ask(killed, 1), ask(other, 2)) == (2, 3)
        its, others = (psutil.Process(one.pid).children(recursive=True) for one in (killed, other))
        assert {"raylet", "gcs_server"} <= set(names(its)) and any(name.startswith("ray::") for name in names(its))
        killed.kill()
        killed.wait(60)
        wait_for_none(its)
        assert ask(other, 5) == 6
        before = names(others)
        assert "raylet" in before

        assert other.stdin is not None
        other.stdin.write("end\n")  # shut down by itself, and goes on: nothing is left either, the watching process among it
        other.stdin.flush()
        wait_for_none(others)
        assert other.poll() is None
