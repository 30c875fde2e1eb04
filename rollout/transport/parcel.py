"""Files that a run sends to nodes of the cluster which do not have its folder: the model, plug-ins, and what parts read by its path.

    the run's node   an actor serves them, a piece at a time, as long as the run goes on (`rollout.sent_files`)
    another node     the first process that needs them fetches all into a folder of this user's there, by their digest; others wait
                     for it and take what is there, and so does an engine that is started again. What another process has is never replaced:
                     where a file of it was changed, all arrive once more, beside it. What none has any more is removed by the
                     next that comes

The relative places of files in the run's folder stay what they are, below `FOLDER` of what arrives, and processes look there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath

PIECE = 16 * 2**20
"""Bytes of a file that are sent at once."""
MODEL, FOLDER, OUTSIDE = "model", "folder", "outside"
"""Where the model's files arrive, those of the run's folder, and plug-ins that are not in it."""
MOST_FILES = 10_000
"""That a folder of a parcel may hold, folders among them: more are a folder of runs or an environment that was named by mistake."""
BYTECODE = "__pycache__"
"""Folders that Python writes into where it imports, so nothing of them can stay what was announced."""
LOCK, USED, DRAFT = "lock", ".used", ".draft"
"""Beside what arrived under a digest: a file that whoever fetches holds, one that each process holds that has it, what is half there."""
ASKED_S = 0.1
"""Seconds between two looks at whether another process has fetched the files."""
OTHERS = stat.S_IWGRP | stat.S_IWOTH
"""Who must not write where code arrives."""
_HELD: list[int] = []
"""Files that this process holds until it ends."""

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
    """The files of a folder, by links to folders in it too: what is read by those where the run is must be found by them elsewhere.
    What Python keeps beside code is of this node's files alone."""
    found, seen = list[Path](), 0
    left: list[tuple[Path, tuple[Path, ...]]] = [(folder, (folder.resolve(),))]
    while left:
        at, way = left.pop()
        for name in _names(at):
            path, seen = at / name, seen + 1
            if seen > MOST_FILES:  # folders too, for links between them lead to each on ever more ways
                raise ValueError(f"{called} holds more than {MOST_FILES} files and folders; send what is read there")
            if path.is_file():
                found.append(path)
            elif path.is_dir() and name != BYTECODE:
                left.append((path, (*way, _real_folder(path, way, called))))
    return sorted(found)


def _names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:  # one at a time: there may be more than fit into memory
        yield from (entry.name for entry in entries)


def _real_folder(path: Path, way: Sequence[Path], called: str) -> Path:
    """Where a folder really lies. way: where those that it was found through lie, the whole one first. Raises ValueError when it is a link
    out of that, or to one of them."""
    if not path.is_symlink():
        return way[-1] / path.name
    real = (way[-1] / path.name).resolve()
    if real in way or not real.is_relative_to(way[0]):
        raise ValueError(f"{called}: {path} is a link out of the folder, or to one that it is in; put what is read there in its place")
    return real


def receive(files: Sequence[SentFile], read: Read, into: Path, wait_s: float) -> Path:
    """Have the files of a parcel in the folder `into`, and return it. What is there already stays where it is what was announced; where it
    is not, and another living process has the folder, they arrive in one beside it, which is returned. Code is among it, so nobody but
    this user may write into the folder above, or put another in its place.

    One process of a node at a time does this: those that come meanwhile find what it fetched. What no living process has received is
    removed. wait_s: seconds that a piece may take.

    Raises ValueError when a file is not what was announced, or somebody else may write there, and TimeoutError.
    """
    into = _kept_alone(into.parent) / into.name
    home = into.parent
    with _locked(home, wait_s) as sign:
        places = chain([into], (into.with_name(f"{into.name}-{copy}") for copy in count(1)))
        arrived = next(place for place in places if _has_arrived(files, read, place, sign))  # one that no process has will do
        _remove_unused(home)
    return arrived


def _has_arrived(files: Sequence[SentFile], read: Read, into: Path, sign: Callable[[], None]) -> bool:
    """Have the files in a folder for as long as this process lives, fetched where they are not there; False where another process has the
    folder, and what is there is something else by now: it may run in it. The folder above must be locked."""
    held, there = os.open(into.with_name(f"{into.name}{USED}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), False
    try:
        is_alone = _is_taken(held)
        there = all(_is_there(file, into, sign) for file in files)
        if is_alone and not there:
            _fetch(files, read, into, sign)
            there = True
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)  # nobody has it for himself without the lock of the folder above
    finally:
        if there:
            _HELD.append(held)
        else:
            os.close(held)
    return there


def _fetch(files: Sequence[SentFile], read: Read, into: Path, sign: Callable[[], None]) -> None:
    shutil.rmtree(into, ignore_errors=True)
    draft = into.with_name(f"{into.name}{DRAFT}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / FOLDER).mkdir(parents=True)  # where processes look, even if nothing lies there
        for file in files:
            _receive_file(file, read, draft, sign)
        draft.rename(into)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def place_of_arrival() -> Path:
    """The folder of this user's that whatever any run sends to this node arrives in, each parcel in one of its own."""
    return Path(tempfile.gettempdir(), f"burnish-files-{os.geteuid()}")


@contextmanager
def _locked(home: Path, wait_s: float) -> Iterator[Callable[[], None]]:
    """Hold the folder of what arrives for this process; the system gives it back when that ends. Gives what is a sign to those who wait."""
    file = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        seen, since = 0, time.monotonic()
        while not _is_taken(file):
            if (changed := os.fstat(file).st_mtime_ns) != seen:
                seen, since = changed, time.monotonic()
            if time.monotonic() - since > 2 * wait_s:  # a piece, and what is done with it
                raise TimeoutError(f"{home}: another process of this node has fetched nothing of what a run sends for {2 * wait_s:.0f} s")
            time.sleep(ASKED_S)
        yield lambda: os.utime(file)
    finally:
        os.close(file)


def _is_taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unused(home: Path) -> None:
    """Remove what arrived for runs that have ended. The folder must be locked."""
    for used in home.glob(f"*{USED}"):
        file = os.open(used, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if _is_taken(file):
                name = used.name.removesuffix(USED)
                for left in (name, f"{name}{DRAFT}"):
                    shutil.rmtree(home / left, ignore_errors=True)
                used.unlink()
        finally:
            os.close(file)


def _kept_alone(folder: Path) -> Path:
    """Make a folder that is this user's alone, and give its path without links. Whoever may use the machine may write where it lies, so
    nobody else may rename it there, or what it lies in: every folder above is this user's or root's, and sticky if others write into it."""
    folder = folder.parent.resolve() / folder.name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & OTHERS:
        raise ValueError(f"{folder} is not this user's alone, and the code that arrives there is run; remove it from this node")
    for above in folder.parents:
        found = above.stat()
        if found.st_uid not in (os.geteuid(), 0) or (found.st_mode & OTHERS and not found.st_mode & stat.S_ISVTX):
            fix = "set its sticky bit, or TMPDIR to another folder, on this node before Ray is started there"
            raise ValueError(f"{above}: others may rename what lies there, and the code that arrives in {folder} is run; {fix}")
    folder.chmod(0o700)
    return folder


def _is_there(file: SentFile, folder: Path, sign: Callable[[], None]) -> bool:
    sign()
    path = folder / file.place
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _receive_file(file: SentFile, read: Read, into: Path, sign: Callable[[], None]) -> None:
    place = PurePosixPath(file.place)
    assert not place.is_absolute() and ".." not in place.parts, f"{place} would leave the folder"
    path, digest, at = into / place, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        while piece := read(file.place, at, PIECE) if at < file.size else b"":
            sign()
            out.write(piece)
            digest.update(piece)
            at += len(piece)
    if (at, digest.hexdigest()) != (file.size, file.sha256):
        raise ValueError(f"{file.place} changed while it was sent to other nodes; start again")
