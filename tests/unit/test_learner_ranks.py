"""Where learners that share a policy listen for each other."""

from __future__ import annotations

import os
import socket

import pytest
import torch.distributed as dist

from burnish.trainer.learner.ranks import join, listen

pytestmark = pytest.mark.unit


def test_the_meeting_point_is_on_its_address_alone() -> None:
    """A TCPStore that binds by itself listens on every address of the machine, whatever host it is given."""
    store = listen("127.0.0.1", 2, 30.0)
    with socket.create_connection(("127.0.0.1", store.port), timeout=10):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.66.66.66", store.port), timeout=10)


def test_ranks_of_one_machine_reach_each_other_over_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, gloo listens where the machine's name leads, which may be its address in the network."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    store = listen("127.0.0.1", 1, 30.0)
    join("127.0.0.1", store.port, 0, 1, "cpu", 30.0, store)
    dist.destroy_process_group()
    assert socket.if_nametoindex(os.environ["GLOO_SOCKET_IFNAME"]) and os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
