"""Two nodes of Ray on one machine, of which the one with the runner is lost and replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import psutil
import ray
from ray.cluster_utils import Cluster

SLOT = "engine_slot"
"""What an engine asks for, and only the second node has."""
LOST_S = 120.0
"""Seconds in which a runner is there, and the processes of a killed node are gone."""


class TwoNodes:
    """The first has room for the driver's learner, the second for one runner."""

    def __init__(self) -> None:
        head = {"num_cpus": 3, "object_store_memory": 128 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.add()
        self.address: str = self._cluster.address
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)

    def add(self) -> None:
        """Have a node join in the place of the second."""
        self._node = self._cluster.add_node(num_cpus=1, resources={SLOT: 1}, object_store_memory=100 << 20)

    def lose(self, is_runner: Callable[[psutil.Process], bool]) -> None:
        """Kill all processes of the second node, the runner's among them, as they go with a machine."""
        (raylet,) = self._node.all_processes["raylet"]
        node, deadline = psutil.Process(raylet.process.pid), time.monotonic() + LOST_S
        while not any(map(is_runner, processes := [node, *node.children(recursive=True)])):
            assert time.monotonic() < deadline, f"no runner on the second node in {LOST_S:g} s"
            time.sleep(0.1)
        for one in processes:
            one.kill()
        self._cluster.remove_node(self._node, allow_graceful=False)  # Ray's other processes of it, and the books of the cluster's own
        _, alive = psutil.wait_procs(processes, timeout=LOST_S)
        assert alive == [], alive

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()
