"""Files that a run sends to nodes of the cluster which do not have its folder: the model, plug-ins, and what parts read by its path.

    the run's node   an actor serves them, a piece at a time, as long as the run goes on (`rollout.sent_files`)
    another node     the first process that needs them fetches all into the folder of Ray's session there, by their digest; others take
                     what is there already, and so does an engine that is started again

The relative places of files in the run's folder stay what they are, below `FOLDER` of what arrives, and processes look there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PIECE = 16 * 2**20
"""Bytes of a file that are sent at once."""
MODEL, FOLDER, OUTSIDE = "model", "folder", "outside"
"""Where the model's files arrive, those of the run's folder, and plug-ins that are not in it."""
MOST_FILES = 10_000
"""That a parcel may hold: more are a folder of runs or an environment that was named by mistake."""

Read = Callable[[str, int, int], bytes]
"""Of the file that arrives at a place: from so many bytes on, so many at most."""


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file of a parcel: the place where it arrives, with "/" between folders, its bytes, and their SHA-256 in hexadecimal."""

    place: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a run sends. server: the name of the actor that has it. node: the id of the run's own, where everything is in its own place.
    files: all of them. places: where a file of the run's node arrives, by its path there. wait_s: seconds that a piece may take.

    Example: `parcel.digest` names the folder that it arrives in.
    """

    server: str
    node: str
    files: tuple[SentFile, ...]
    places: Mapping[str, str]
    wait_s: float

    @property
    def digest(self) -> str:
        listed = "\n".join(f"{file.sha256} {file.place}" for file in self.files)
        return hashlib.sha256(listed.encode()).hexdigest()


def sources_of(model: Path, folder: Path, code: Sequence[str], send: Sequence[str]) -> dict[str, Path]:
    """The files to send, by the place where they arrive: those of the model's folder, files of code, and what is sent beside them.

    folder: the run's. code: paths of plug-ins and modules, absolute. send: files and folders in the run's folder, by their relative paths.
    Raises ValueError naming what is not there, is not in the folder, or holds too many files, or a link to a folder that leads elsewhere.
    """
    found = {f"{MODEL}/{path.relative_to(model).as_posix()}": path for path in _files(model, str(model))}
    for path in map(Path, code):
        found[_place_of_code(path, folder)] = path
    for name in send:
        path = sent_path(folder, name)
        for file in (path,) if path.is_file() else _files(path, f"resources.send: {name}"):
            found[f"{FOLDER}/{file.relative_to(folder).as_posix()}"] = file
    return found


def sent_path(folder: Path, name: str) -> Path:
    """What an item of `resources.send` names in the run's folder. Raises ValueError when it is not there, or elsewhere."""
    path = Path(os.path.normpath(folder / name))
    if os.path.isabs(name) or not path.is_relative_to(folder):
        raise ValueError(f"resources.send: {name} is not in {folder}; give its path from there")
    if not path.exists():
        raise ValueError(f"resources.send: {name} is not in {folder}")
    return path


def _place_of_code(path: Path, folder: Path) -> str:
    """A file beside the recipe keeps its relative place; another has a folder of its own, by its path, since two may have one name."""
    if path.is_relative_to(folder):
        return f"{FOLDER}/{path.relative_to(folder).as_posix()}"
    return f"{OUTSIDE}/{hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]}/{path.name}"


def _files(folder: Path, called: str) -> list[Path]:
    """The files of a folder, by links to folders in it too: what is read by those where the run is must be found by them elsewhere."""
    found, home = list[Path](), folder.resolve()
    for at, inside, names in os.walk(folder, followlinks=True):
        way = {up.resolve() for up in (Path(at), *Path(at).parents)}
        for link in (Path(at, name) for name in inside if os.path.islink(os.path.join(at, name))):
            if link.resolve() in way or not link.resolve().is_relative_to(home):
                raise ValueError(
                    f"{called}: {link} is a link out of the folder, or to one that it is in; put what is read there in its place"
                )
        found += (Path(at, name) for name in names)
        if len(found) > MOST_FILES:
            raise ValueError(f"{called} holds more than {MOST_FILES} files; send what is read there")
    return sorted(path for path in found if path.is_file())


def receive(files: Sequence[SentFile], read: Read, into: Path) -> Path:
    """Have the files of a parcel in the folder `into`, and return it. What is there already stays where it is what was announced. Code is
    among it, so nobody but this user may write into the folder above.

    Raises ValueError when a file is not what was announced, or somebody else may write there.
    """
    _keep_alone(into.parent)
    if all(_is_there(file, into) for file in files):
        return into
    shutil.rmtree(into, ignore_errors=True)
    draft = into.with_name(f".{into.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        (draft / FOLDER).mkdir(parents=True)  # where processes look, even if nothing lies there
        for file in files:
            _receive_file(file, read, draft)
        try:
            draft.rename(into)
        except OSError:
            if not into.is_dir():  # else another process of this node was first
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return into


def _keep_alone(folder: Path) -> None:
    """Make a folder that is this user's alone: whoever may use the machine may write where Ray's session lies."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ValueError(f"{folder} is not this user's alone, and the code that arrives there is run; remove it from this node")
    folder.chmod(0o700)


def _is_there(file: SentFile, folder: Path) -> bool:
    path = folder / file.place
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _receive_file(file: SentFile, read: Read, into: Path) -> None:
    place = PurePosixPath(file.place)
    assert not place.is_absolute() and ".." not in place.parts, f"{place} would leave the folder"
    path, digest, at = into / place, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        while piece := read(file.place, at, PIECE) if at < file.size else b"":
            out.write(piece)
            digest.update(piece)
            at += len(piece)
    if (at, digest.hexdigest()) != (file.size, file.sha256):
        raise ValueError(f"{file.place} changed while it was sent to other nodes; start again")
