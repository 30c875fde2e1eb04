"""Ray's part of sending a run's files to nodes without its folder (`transport/parcel.py`): the actor that serves them, and who asks it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .transport.parcel import FOLDER, MODEL, Parcel, SentFile, place_of_arrival, receive
from .worker import WorkerSetup


class FileServer:
    """Reads pieces of the files that a run sends, and of no others."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = dict(sources)

    def read(self, place: str, at: int, size: int) -> bytes:
        with open(self._sources[place], "rb") as file:
            file.seek(at)
            return file.read(size)


@contextmanager
def serving_files(sources: Mapping[str, Path], wait_s: float) -> Iterator[Parcel]:
    """Serve files from this node within the block. sources: by the place where they arrive (`sources_of`). wait_s: seconds that a piece
    may take on its way."""
    node, name = ray.get_runtime_context().get_node_id(), f"burnish-files-{uuid.uuid4().hex}"
    files = tuple(_listed(place, path) for place, path in sorted(sources.items()))
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = (
        ray.remote(FileServer)
        .options(name=name, num_cpus=0, scheduling_strategy=here)
        .remote({place: str(path.resolve()) for place, path in sources.items()})
    )
    try:
        yield Parcel(name, node, files, {str(path): place for place, path in sources.items()}, wait_s)
    finally:
        ray.kill(actor)


def _listed(place: str, path: Path) -> SentFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SentFile(place, path.stat().st_size, digest)


def with_files(setup: WorkerSetup) -> WorkerSetup:
    """What a worker is built from on this node: where the files of the setup were sent because it has none of them, as they arrived."""
    parcel = setup.parcel
    if parcel is None or ray.get_runtime_context().get_node_id() == parcel.node:
        return setup
    actor = ray.get_actor(parcel.server)

    def read(place: str, at: int, size: int) -> bytes:
        piece: bytes = ray.get(actor.read.remote(place, at, size), timeout=parcel.wait_s)
        return piece

    arrived = receive(parcel.files, read, place_of_arrival() / parcel.digest, parcel.wait_s)
    return moved(setup, parcel, arrived)


def moved(setup: WorkerSetup, parcel: Parcel, arrived: Path) -> WorkerSetup:
    """The setup with the files that arrived in a folder in the place of its own."""

    def here(path: str) -> str:
        return str(arrived / parcel.places[path]) if path in parcel.places else path

    return replace(
        setup,
        model=arrived / MODEL,
        folder=str(arrived / FOLDER),
        plugins=tuple(map(here, setup.plugins)),
        modules=tuple(map(here, setup.modules)),
    )
