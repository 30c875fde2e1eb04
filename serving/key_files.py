"""Writing a keys file: a new key, and one that is revoked. What a person wrote beside them stays as it is."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from ..envs.pydantic_words import first_error
from ..envs.registry import did_you_mean
from .keys import Key, KeyName, parse_keys, read_keys, sha256_of, write_whole

PREFIX: Final = "bk-"
"""What keys begin with, so that programs that look for secrets in code can find them."""
_UNITS: Final = {"d": "days", "h": "hours", "w": "weeks"}


def new_key(file: Path, name: str, **said: Any) -> str:
    """Add a key to a file, which is made if need be, and return the key: it is written nowhere else. said: fields of `Key`.

    Raises ValueError when the name is taken or none, and when a field is not fit.
    """
    try:
        TypeAdapter(KeyName).validate_python(name)
    except ValidationError:
        raise ValueError(f"the name {name!r} must be lower-case letters, digits, - and _, at most 64 of them") from None
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(sha256=sha256_of(secret.encode()), created=datetime.now(UTC).replace(microsecond=0), **said)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    with _held(file):
        text = _text(file) if file.exists() else ""
        known = parse_keys(text, str(file))
        if name in known:
            state = known[name].ended(datetime.now(UTC))
            raise ValueError(f"{file} has a key {name!r} already{f', which is {state}' if state else ''}; give the new one another name")
        lines = [f"[keys.{name}]", *(f"{field} = {_toml(value)}" for field, value in key if value is not None)]
        text = (f"{text.rstrip()}\n\n" if text.strip() else "") + "\n".join(lines) + "\n"
        if parse_keys(text, str(file)) != {**known, name: key}:
            raise ValueError(f"{file} cannot be added to safely; write what it holds as tables [keys.NAME]")
        write_whole(file, text)
    return secret


def revoke(file: Path, name: str) -> None:
    """Write down that a key lets nobody in from now on. Raises ValueError when there is none of this name, or it was revoked before."""
    with _held(file):
        text = _text(file)
        known = parse_keys(text, str(file))
        if name not in known:
            raise ValueError(f"{file} has no key {name!r}{did_you_mean(name, sorted(known))}")
        if (before := known[name].revoked) is not None:
            raise ValueError(f"key {name!r} of {file} was revoked before, at {before.isoformat()}")
        now = datetime.now(UTC).replace(microsecond=0)
        head = re.compile(rf"""^[ \t]*\[[ \t]*keys[ \t]*\.[ \t]*["']?{re.escape(name)}["']?[ \t]*\][^\n]*\n""", re.MULTILINE)
        changed = head.sub(lambda found: f"{found[0]}revoked = {now.isoformat()}\n", f"{text.rstrip()}\n", count=1)
        if parse_keys(changed, str(file)) != {**known, name: known[name].model_copy(update={"revoked": now})}:
            raise ValueError(f"{file} cannot be changed safely; write `revoked = {now.isoformat()}` into [keys.{name}] yourself")
        write_whole(file, changed)


def read_expiry(text: str, now: datetime) -> datetime:
    """When a key ends. Examples: "90d", "12h", "4w" from now; "2027-01-01", its first moment in UTC; "2027-01-01T12:00:00+02:00".

    Raises ValueError for what is neither, and for what is past.
    """
    span = re.fullmatch(r"(\d{1,5})([dhw])", text)
    try:
        when = now + timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time to expire at; give a span such as 90d, 12h or 4w, or a date such as 2027-01-01") from None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    if when <= now:
        raise ValueError(f"a key that expires at {text} lets nobody in; give a later time")
    return when.replace(microsecond=0)


def _text(file: Path) -> str:
    read_keys(file)  # says what is wrong with it
    return file.read_text(encoding="utf-8")


def _toml(value: Any) -> str:
    """A field's value as TOML has it: a text, a number, a list of texts, or a time."""
    return value.isoformat() if isinstance(value, datetime) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Keep other commands from writing the file until this one has. Raises ValueError when its folder cannot be written."""
    lock = file.with_name(f".{file.name}.lock")
    try:
        held = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ValueError(f"keys file {file} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
