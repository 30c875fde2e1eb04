"""Keeping what authenticates nobody on loopback."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def loopback_interface() -> str:
    """What this machine calls its loopback interface: lo, or lo0."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def collectives_on_loopback() -> dict[str, str]:
    """The environment under which gloo and nccl, which ask nobody who it is, listen for processes of this machine alone. Left to themselves
    they listen on an address of the network, or where the machine's name leads."""
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback_interface())


def this_loopback() -> tuple[str, str]:
    """What tells one loopback from another: this machine since it started, and the network namespace of this process."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/net")
