"""API keys: who may ask, for what, and how much of it.

A keys file is TOML, one table a key, and holds of each key its SHA-256 only. A key is 256 bits from the system's random source: nobody
guesses one, however cheap its hash is, so salt and a slow hash, which protect words that people choose, would only cost time per request.

    [keys.search-team]
    sha256 = "9f86d0…"
    created = 2026-01-01T12:00:00+00:00
    expires = 2027-01-01T00:00:00+00:00
    models = ["inspector"]
    requests_per_minute = 60
"""

from __future__ import annotations

import hashlib
import hmac
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..envs.pydantic_words import first_error
from ..rpc.security import read_token, shown_variable
from .config import small_text

Route = Literal["chat", "completions", "models", "guardrail", "feedback", "metrics"]
ROUTES: Final[tuple[Route, ...]] = get_args(Route)
MAX_BYTES: Final = 4_000_000
LONGEST_KEY: Final = 512
"""Bytes of a key that is looked at at all."""

KeyName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Count = Annotated[int, Field(strict=True, gt=0)]


class Key(BaseModel):
    """What a keys file says of one key: `[keys.NAME]`. What it does not say has no limit.

    sha256: of the key. created, expires, revoked: with an offset. models: names that it may ask for, by default all. routes: what it may
    call; completions, whose prompts may hold control tokens, only where it says so. requests_per_minute, tokens_per_minute: in any 60
    seconds; tokens are those of prompts and answers. parallel: answers that are written at a time; a request for `n` answers counts n.
    budget_tokens: in all, for ever.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    models: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = None
    routes: tuple[Route, ...] = Field(default=("chat", "models"), min_length=1)
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    parallel: Count | None = None
    budget_tokens: Count | None = None

    def ended(self, now: datetime) -> str:
        """Why it lets nobody in any more: "revoked", "expired", or ""."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else ""


class KeysFile(BaseModel):
    """A keys file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: dict[KeyName, Key] = {}


class Keyring(Protocol):
    """Where the keys are that let requests in."""

    def current(self) -> Mapping[str, Key]:
        """The keys by name, as they are now. Raises ValueError when that cannot be said."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Keys without limits, as `--api-key-file` lists them. Neither a key nor anything it could be read from is kept, sent or logged."""

    keys: Mapping[str, Key]

    def current(self) -> Mapping[str, Key]:
        return self.keys


class Filed:
    """The keys of a file that may change while they are used: one that is revoked lets nobody in from the next request on.

    Example: `Filed(Path("keys.toml")).current()["search-team"].parallel`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read: tuple[tuple[int, int, int], Mapping[str, Key]] | None = None

    def current(self) -> Mapping[str, Key]:
        try:
            found = self.file.stat()
        except OSError as error:
            raise ValueError(f"keys file {self.file} cannot be read: {error.strerror}") from None
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._read is None or self._read[0] != seen:
            self._read = (seen, read_keys(self.file))
        return self._read[1]

    def __reduce__(self) -> tuple[type[Filed], tuple[Path]]:
        return Filed, (self.file,)


def listed_keys(env: str, file: str) -> Listed | None:
    """The key in the environment variable, or the keys in the file, one a line; None when neither is named.

    Raises ValueError when none is fit.
    """
    if env:
        where, keys = f"environment variable {shown_variable(env)}", [read_token(env, "")]
    elif file:
        where = f"file {file}"
        try:
            keys = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"API keys: {where} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    else:
        return None
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"API keys: {where} must hold one key a line, printable ASCII without spaces")
    return Listed({f"key-{i}": Key(sha256=sha256_of(key.encode()), routes=ROUTES) for i, key in enumerate(keys, 1)})


def read_keys(file: Path) -> Mapping[str, Key]:
    """The keys of a keys file by name. Raises ValueError, one line, when it cannot be read or says what no keys file says."""
    return parse_keys(small_text(file, f"keys file {file}", MAX_BYTES), str(file))


def parse_keys(text: str, file: str) -> Mapping[str, Key]:
    """The keys that a text of TOML describes. Raises ValueError as `read_keys` does, naming the file."""
    try:
        keys = KeysFile.model_validate(tomllib.loads(text)).keys
    except ValidationError as error:
        raise ValueError(f"keys file {file}: {first_error(error, KeysFile)}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"keys file {file}: not TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"keys file {file}: not TOML that a keys file has: tables lie too deep within each other") from None
    digests = Counter(key.sha256 for key in keys.values())
    for name, key in keys.items():
        if digests[key.sha256] > 1:
            raise ValueError(f"keys file {file}: keys.{name}: another name has the same key")
    return keys


def holder(keys: Mapping[str, Key], authorization: Iterable[bytes]) -> str | None:
    """The name of the key that the values of a request's `Authorization` headers carry, None when they carry none.

    Every key is compared in full, so the time that it takes says nothing of any. Several headers are none: who reads which is not one's own
    to guess. Example: `holder(keys, [b"Bearer bk-…"])`.
    """
    values = list(authorization)
    kind, _, given = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
    given = given.strip()
    fit = kind.lower() == b"bearer" and 0 < len(given) <= LONGEST_KEY
    digest = sha256_of(given if fit else b"")
    found = None
    for name, key in keys.items():
        found = name if hmac.compare_digest(key.sha256, digest) else found
    return found if fit else None


def sha256_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def write_whole(file: Path, text: str, mode: int = 0o600) -> None:
    """Put a text in a file's place at once; readable for its owner only unless told."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
