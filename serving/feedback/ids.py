"""Ids of answers that say, to this service alone, when they were made and for which key.

An id carries the second in which it was made, 64 random bits, and a code of both, of what stands before them and of the key's name that
only who has the secret can make (HMAC, RFC 2104, with SHA-256, 96 bits of it). So nothing is looked up to know whose answer an id is, a
service that starts anew knows its old ones, and an answer has one id, by which its feedback is counted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

SECRET_BYTES: Final = 32
_ID: Final = re.compile(r"([a-z]{1,20}-([0-9a-f]{8})[0-9a-f]{16})([0-9a-f]{24})")


class AnswerIds:
    """Makes ids and tells whose they are. Example: `ids.made_at(ids.new("chatcmpl", "search-team"), "search-team")`."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        assert len(secret) == SECRET_BYTES
        self._secret, self._clock = secret, clock

    def new(self, prefix: str, key: str) -> str:
        """An id for an answer to a key, "" where there are none."""
        made = f"{prefix}-{int(self._clock()) & 0xFFFFFFFF:08x}{secrets.token_hex(8)}"
        return f"{made}{self._code(made, key)}"

    def made_at(self, id: str, key: str) -> float | None:
        """When an id was made, in seconds since 1970; None where it was not made here, or for another key."""
        found = _ID.fullmatch(id)
        if found is None or not hmac.compare_digest(found[3], self._code(found[1], key)):
            return None
        return float(int(found[2], 16))

    def _code(self, made: str, key: str) -> str:
        return hmac.new(self._secret, f"{made}\0{key}".encode(), hashlib.sha256).hexdigest()[:24]


def kept_secret(file: Path) -> bytes:
    """The secret in a file, which is made when it is not there, for its owner only. Raises ValueError when it is none."""
    with suppress(FileExistsError):
        draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as stream:
            stream.write(secrets.token_hex(SECRET_BYTES))
        try:
            os.link(draft, file)  # whole or not at all, and never over another's
        finally:
            draft.unlink()
    try:
        secret = bytes.fromhex(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        raise ValueError(f"{file} cannot be read as a secret; remove it, and ids of earlier answers are no longer known") from None
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"{file} holds no secret of {SECRET_BYTES} bytes; remove it, and ids of earlier answers are no longer known")
    return secret
