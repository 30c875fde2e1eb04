"""Where data files lie and how they are packed: paths, folders, URLs, compression. The only place that knows; `rows.py` reads them.

A *place* is what a recipe or a command names: a file, a folder of files, a folder that `datasets` saved (`save_to_disk`), or the URL of a
file that fsspec opens (`s3://bucket/train.jsonl.gz`). Compression is found by content, whatever the suffix says: gzip, bzip2, xz and
Zstandard. Nothing is unpacked to disk, and memory holds a buffer, not a file.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn, TextIO

from ..rpc.extras import require

PACKED_SUFFIXES: Final = (".gz", ".bz2", ".xz", ".zst")
PROTOCOLS: Final = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "hf", "memory")
"""What a URL may begin with. fsspec knows more, and some of those open what a file of theirs names."""


class UnreadableFile(ValueError):
    """The content of a file is none that can be read: damaged, in another encoding, or of another form. Where it lies is well."""


MAX_RATIO: Final = 250
FREE_BYTES: Final = 1 << 30
"""A compressed file may unpack to so much, or to so many times its size. Text stays well below 100; zeros reach 1,000."""

READ_BYTES: Final = 1 << 18
"""What is held of a file while its digest is taken."""

FREE_ROWS: Final = 1 << 17
"""A file may have so many rows, or as many as it has bytes, once unpacked: what holds nothing, or repeats, takes none."""

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_NOT_ROWS = ("readme", "license", "licence", "changelog")
_HIDDEN = (".", "_", "lost+found")  # the last is root's own, at the top of a disk


@contextmanager
def new_file(path: Path | None) -> Iterator[TextIO | None]:
    """A text file that is written within the block and was not there before; None for none. Where the block fails nothing of it is left,
    so that another try may write it. Raises FileExistsError."""
    if path is None:
        yield None
        return
    with path.open("x", encoding="utf-8") as file:
        try:
            yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def is_url(place: str) -> bool:
    """Whether a place is a URL. Example: `is_url("s3://bucket/a.jsonl")`."""
    return _URL.match(place) is not None


def is_there(place: str) -> bool:
    """Whether a local place exists; of a URL nothing is known before it is opened."""
    return is_url(place) or os.path.exists(place)


def unpacked_name(file: str) -> PurePosixPath:
    """A file's name without the suffix that says how it is packed. Example: `unpacked_name("a/Train.jsonl.GZ").name` is "Train.jsonl"."""
    path = PurePosixPath(re.sub(r"[?#].*$", "", file) if is_url(file) else file)
    return path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path


def suffix_of(file: str) -> str:
    """Of the file that is packed, in small letters. Example: `suffix_of("a/Train.JSONL.gz")` is ".jsonl"."""
    return unpacked_name(file).suffix.lower()


def files_at(place: str) -> list[str]:
    """The files of a place: itself, or those of a folder in order of their names, in the folders below it too.

    Files and folders whose names begin with "." or "_", and a folder's README and licence, are no rows. A folder that `datasets` saved has
    the files that its `state.json` names. A link to a folder within is followed where what lies there is not read in its own place, as in
    a volume that Kubernetes mounts, and gives no file a second time. Raises ValueError for a folder without files, or below which one
    cannot be read, for one of several splits, of which one must be named, and where a file, or a folder below it, is a link that leads out
    of the folder, for whoever filled it chose what that is, and it would be read and trained on, or nowhere.
    """
    folder = Path(place)
    if is_url(place) or not os.path.isdir(place):
        return [place]
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        raise ValueError(f"{place}: is a data set of several splits; name one of them: {', '.join(str(folder / name) for name in splits)}")
    if (folder / "state.json").is_file():
        return _saved(folder)
    found = [str(path) for path in sorted(_files_below(folder))]
    if not found:
        raise ValueError(f"{place}: the folder holds no file of rows")
    return found


def _files_below(folder: Path) -> list[Path]:
    """The files of rows of a folder, and of those in it. Each folder is walked once, at its own place rather than by a link to it."""
    walked: set[Path] = set()
    linked: dict[Path, Path] = {}
    own, links = _walk(folder, folder, walked)
    for link in links:  # to which those are added that its walk comes by
        if link.resolve() not in walked:
            files, more = _walk(folder, link, walked)
            links += more
            for path in files:
                linked.setdefault(path.resolve(), path)
    known = {path.resolve() for path in own} if linked else set()
    return own + [path for real, path in linked.items() if real not in known]


@contextmanager
def opened(file: str) -> Iterator[BufferedReader[Any]]:
    """The bytes of a file, unpacked. Raises ValueError naming the file when it is missing or cannot be had, Unreadable when damaged."""
    try:
        with _source(file) as packed, _unpacked(file, packed) as stream:
            yield stream
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UnreadableFile(f"{file}: the compressed file is damaged or cut short: {error}") from error
    except OSError as error:
        if error.errno is None:  # raised by who unpacks, not by who has the file
            raise UnreadableFile(f"{file}: is damaged or cut short: {error}") from error
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}") from error


def _walk(home: Path, start: Path, walked: set[Path]) -> tuple[list[Path], list[Path]]:
    """The files of rows and the links to folders in `start` and below it, where nothing in `home` was walked yet; those become `walked`."""
    files: list[Path] = []
    links: list[Path] = []
    for at, folders, names in os.walk(start, onerror=_refuse):
        walked.add(Path(at).resolve())
        inside = [Path(at, name) for name in folders if not name.startswith(_HIDDEN)]
        links += [path for path in inside if path.is_symlink()]
        folders[:] = [path.name for path in inside if not path.is_symlink() and path.resolve() not in walked]
        files += [Path(at, name) for name in names if not name.startswith(_HIDDEN) and not name.lower().startswith(_NOT_ROWS)]
    for path in sorted([*links, *files]):
        _check_own(home, path)
    return sorted(path for path in files if path.is_file()), sorted(links)


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename}: the folder cannot be read: {error.strerror}")


def _saved(folder: Path) -> list[str]:
    try:
        names = [entry["filename"] for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{folder / 'state.json'}: is not what `datasets` saves beside its files") from None
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside or not names:
        raise ValueError(f"{folder / 'state.json'}: must name files of its own folder, not {outside!r:.80}")
    for name in names:
        _check_own(folder, folder / name)
    return [str(folder / name) for name in names]


def _check_own(folder: Path, file: Path) -> None:
    """Raise ValueError for a link out of a folder, or to nothing. One to a file in the `blobs` of the hub's cache is none of these: there
    lie the files of snapshots."""
    if file.is_symlink() and not file.exists():
        raise ValueError(f"{file} is a link that leads nowhere; put there what it led to, or remove it")
    home = folder.resolve()
    snapshot = next((up for up in (home, *home.parents) if up.parent.name == "snapshots"), None)
    within = (home,) if snapshot is None or file.is_dir() else (home, snapshot.parent.parent / "blobs")
    if not any(file.resolve().is_relative_to(one) for one in within):
        raise ValueError(f"{file} is a link that leads out of the folder; copy there what it leads to, or name that by itself")


@contextmanager
def _source(file: str) -> Iterator[BufferedReader[Any]]:
    url = _URL.match(file)
    if url is None:
        with Path(file).open("rb") as stream:
            yield stream
        return
    protocol = url[1].lower()
    if protocol not in PROTOCOLS or "::" in file:
        raise ValueError(f"{file}: {protocol}:// is not read; known are {', '.join(f'{known}://' for known in PROTOCOLS)}")
    require(file, ["fsspec"], "train")
    import fsspec

    try:
        raw = fsspec.open(file, "rb").open()
    except ImportError as error:  # fsspec's drivers are packages of their own
        raise ValueError(f"{file}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # and have errors of their own: credentials, names, the network
        raise ValueError(f"{file}: cannot be read: {_of_driver(error)}") from error
    with BufferedReader(_Remote(raw)) as stream:
        yield stream


class _Remote(RawIOBase):
    """A file behind a URL, whose reads fail as those of a file do: with an OSError, whatever its driver raises. size: its bytes, 0 where
    nobody knows."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.size = int(getattr(raw, "size", 0) or 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._raw.seekable())

    def readinto(self, buffer: Any, /) -> int:
        with _as_of_a_file():
            data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        with _as_of_a_file():
            return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


@contextmanager
def _as_of_a_file() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, _of_driver(error)) from error


def _of_driver(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@contextmanager
def _unpacked(file: str, packed: BufferedReader[Any]) -> Iterator[BufferedReader[Any]]:
    start = packed.peek(6)[:6]
    raw: Any
    if start[:2] == _GZIP:
        raw = gzip.GzipFile(fileobj=packed)
    elif start[:3] == _BZIP2:
        raw = bz2.BZ2File(packed)
    elif start == _XZ:
        raw = lzma.LZMAFile(packed)  # noqa: SIM115  # closed below
    elif start[:4] == _ZSTD:
        require(file, ["pyarrow"], "train")
        import pyarrow

        raw = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, "r"), "zstd")
    else:
        yield packed
        return
    with raw, _Unpacked(raw) as stream:
        stream.packed = size_of(packed)
        stream.most = max(FREE_BYTES, MAX_RATIO * stream.packed)
        yield stream


class _Unpacked(BufferedReader):
    """A stream that is unpacked as it is read. packed: bytes of the file, 0 where nobody knows. most: bytes that it may give."""

    packed: int = 0
    most: float = FREE_BYTES


def is_packed(stream: BufferedReader[Any]) -> bool:
    """Whether a stream of `opened` is unpacked as it is read, so that it can only be read from its beginning."""
    return isinstance(stream, _Unpacked)


def most_bytes(stream: BufferedReader[Any]) -> float:
    """How many bytes a stream of `opened` may give before it is no text, but made to fill a disk or a memory."""
    return stream.most if isinstance(stream, _Unpacked) else math.inf


def too_much(where: str) -> UnreadableFile:
    """What is said of a stream of `opened` that gives more than `most_bytes`."""
    return UnreadableFile(f"{where}: the compressed file unpacks to more than {MAX_RATIO} times its size; unpack it yourself")


def digest_of(file: str) -> bytes:
    """SHA-256 of what a file holds, unpacked. Raises what `opened` raises, and Unreadable where that is far more than text unpacks to."""
    whole, length = hashlib.sha256(), 0
    with opened(file) as stream:
        most = most_bytes(stream)
        while piece := stream.read(READ_BYTES):
            length += len(piece)
            if length > most:
                raise too_much(file)
            whole.update(piece)
    return whole.digest()


def most_rows(size: int) -> float:
    """How many rows a file of so many bytes may have; any number where nobody knows its size, 0."""
    return max(FREE_ROWS, size) if size else math.inf


def size_of(packed: BufferedReader[Any]) -> int:
    """Bytes of a file that is open, as it is stored; 0 where nobody knows."""
    if isinstance(packed, _Unpacked):
        return packed.packed
    try:
        return os.fstat(packed.fileno()).st_size
    except OSError:  # behind a URL
        return int(getattr(packed.raw, "size", 0) or 0)
