"""Where processes listen, as Linux shows it."""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path


def listeners_beyond_loopback(pid: int) -> list[str]:
    """The addresses on which a process, or one below it, takes TCP connections from other machines."""
    mine = {inode for process in (pid, *_below(pid)) for inode in _sockets(process)}
    return sorted({place for place, inode in _listening(pid) if inode in mine and not ip_address(place.rpartition(":")[0]).is_loopback})


def _below(pid: int) -> set[int]:
    parents = dict[int, int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, before = {pid}, set[int]()
    while found != before:
        before = set(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def _sockets(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            name = os.readlink(descriptor)
            if name.startswith("socket:["):
                found.add(name[len("socket:[") : -1])
    return found


def _listening(pid: int) -> list[tuple[str, str]]:
    """Every listening TCP socket in the network of a process: address and port, and its inode."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode = line.split()[:10]
            if state == "0A":
                address, _, port = local.partition(":")
                words = bytes.fromhex(address)
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))  # each word as this machine orders its bytes
                mapped = getattr(ip_address(packed), "ipv4_mapped", None)
                found.append((f"{mapped or ip_address(packed)}:{int(port, 16)}", inode))
    return found
