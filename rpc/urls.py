"""URLs and named values: what in them is a secret, how they are shown, and where secrets may be sent.

A recipe is stored with its run, and what a call failed with in transcripts and logs. So a URL in a recipe holds no secret (it is refused,
and its message does not repeat it), whatever text may hold the URL of somebody else is shown `without_secrets`, and a value of a field that
may hold a secret is repeated nowhere (`shown_value`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from .security import NOT_REPEATED, is_loopback

_URL = re.compile(
    r"://\S+"
)  # without its scheme, which a text of letters alone would be searched for at each; a password may hold brackets
_AUTHORITY = re.compile(r"://(?=([^/?#]*))")
_HOST = re.compile(r"(\[[^\]/?#]*\]|[^/?#:@\[\]]*)(:[0-9]{1,5})?(?=[/?#\"'<>,;)\]}]|\Z)")
"""A host and its port, and what a URL goes on with there, or a text after it."""
_PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#?\s]+)=([^&;#]*)")
_WORDS = (
    "token", "secret", "password", "passwd", "passphrase", "pass", "pwd", "signature", "sig", "key", "apikey", "accesskey", "credential",
    "credentials", "auth", "authorization", "bearer", "code", "jwt", "sas",
)  # fmt: skip
"""What the last word of a secret's name may be: `X-Amz-Signature`, `accessToken`, `client_secret`."""
_SEVERAL = (
    "secrets", "passwords", "passphrases", "credentials", "apikeys", "accesskeys", "secretkeys", "privatekeys", "accesstokens",
    "authtokens", "apitokens", "bearertokens", "refreshtokens",
)  # fmt: skip
"""What the name of several ends in. Keys and tokens alone are those of mappings and texts."""
_ENDINGS = (
    "token", "secret", "password", "passwd", "passphrase", "signature", "apikey", "accesskey", "accesskeyid", "credential",
    "authorization", *_SEVERAL,
)  # fmt: skip
"""And what a name ends in that is written as one word."""
_BEFORE_A_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_AROUND = ("env", "file", "path", "value", "name", "variable", "header", "headers", "json", "pem")
"""What stands behind the name of a secret where a secret is written by mistake: `token_env`, `auth_header`."""
_WHERE = ("env", "file", "path")
"""The last word of a field that says where a secret is read."""
_FIELDS = ("header", "headers", "cookie", "cookies", "userinfo", "username")
"""Fields that hold secrets, whatever these are called."""
_PLAIN_FIELDS = ("key", "token", "code", "sig", "signature", "auth", "sas", "bearer", "pass")
"""Words of which a field alone is seldom a secret: a key is one of a mapping, a token one of a text."""
HIDDEN = "…"
DEEPEST = 8
"""Levels of a value that are looked at to show it."""


def without_secrets(text: str, *secrets: str) -> str:
    """The text with user names, passwords and parameters called like secrets taken out of its URLs, and `secrets` themselves.

    Example: `without_secrets("GET https://me:pw@h/x?code=1&n=2 failed")` is `"GET https://…@h/x?code=…&n=2 failed"`.
    """
    for secret in filter(None, secrets):
        text = text.replace(secret, HIDDEN)
    if "://" not in text:
        return text
    return _URL.sub(lambda url: _PARAMETER.sub(_hidden, _without_users(url[0])), text)


def secrets_in(text: str) -> Iterator[str]:
    """What in the URLs of a text is a secret, in words that do not repeat it.

    Example: `list(secrets_in("https://me:pw@h/x?code=1"))` is `["a user name or password", "the parameter 'code'"]`.
    """
    for url in _URL.findall(text) if "://" in text else ():
        if any(_users_in(url)):
            yield "a user name or password"
        yield from (f"the parameter {_read(name)!r:.60}" for name, _ in _PARAMETER.findall(url) if is_like_secret(name))


def _without_users(url: str) -> str:
    parts, at = list[str](), 0
    for start, end in _users_in(url):
        parts += [url[at:start], HIDDEN]
        at = end
    return "".join(parts) + url[at:]


def _users_in(url: str) -> Iterator[tuple[int, int]]:
    """Where user names with their passwords stand in what has a `://`, each up to its `@`.

    A password may hold what should be written otherwise in it: `/`, `?`, `#` and `@`. So one goes as far as the last `@`, and what stands
    between a colon and an `@` is one even beyond these signs, where it cannot be a port with its path.
    """
    last, done = url.rfind("@"), 0
    for found in _AUTHORITY.finditer(url):
        start, at = found.end(), found[1].rfind("@")
        if start < done or last < start:
            continue
        user, rest = found[1][: max(at, 0)], found[1][at + 1 :]
        if ":" in user or (":" in rest and _HOST.match(url, start + at + 1) is None):
            done = last
        elif at >= 0:
            done = start + at
        else:
            continue
        yield start, done


def _hidden(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}={HIDDEN}" if is_like_secret(parameter[1]) else parameter[0]


def is_like_secret(name: str) -> bool:
    """Whether a parameter, or a field beside others of a secret, is called like one: `api_key`, `clientSecret`, `tok%65n`."""
    words = _words(_read(name))
    return words[-1] in _WORDS or "".join(words).endswith(_ENDINGS)


def _words(name: str) -> list[str]:
    """In small letters, without the number at the end, by which several are told apart: of `apiKey_2` "api" and "key". That of `pass@8`, a
    measure, says something else."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", _BEFORE_A_CAPITAL.sub("_", name).lower()) if word]
    if "pass" in words[:-1]:
        return words
    while len(words) > 1 and re.fullmatch(r"v?[0-9]+", words[-1]):
        words.pop()
    return [*words[:-1], words[-1].rstrip("0123456789")] if words else [""]


def may_hold_secret(field: str) -> bool:
    """Whether a field may hold a secret by what it is called, also where it should hold the name of one.

    Example: true of `token`, `api_key_env`, `X-Api-Key` and `headers`, false of `max_tokens` and `keys`.
    """
    words = _words(field)
    if words[-1] in _FIELDS:
        return True
    while len(words) > 1 and words[-1] in _AROUND:
        words.pop()
    return is_like_secret("_".join(words))


def is_called_secret(field: str) -> bool:
    """Whether what a field holds is a secret by what it is called, and hardly anything else: `password`, `api_key`; not `key`, `eos_token`
    or `password_file`."""
    words = _words(field)
    joined = "".join(words[-2:])
    named = (words[-1] in _WORDS and words[-1] not in _PLAIN_FIELDS) or joined.endswith(_SEVERAL)
    return named or joined in ("apikey", "accesskey", "secretkey", "privatekey", "accesstoken", "authtoken", "apitoken", "bearertoken")


def says_where(field: str) -> bool:
    """Whether a field beside others of a secret says where that is read: `token_env`, `keyFile`, `path`; not `profile`."""
    last = _words(field)[-1]
    return any(last.endswith(end) and last.removesuffix(end) in ("", *_WORDS) for end in _WHERE)


def shown_value(value: Any, *place: object, most: int = 80) -> str:
    """How an error repeats a value: the beginning of its `repr`, without what may be a secret by its field, or in its URLs.

    place: the parts of the value's place, names of fields and numbers of items. most: characters.

    Example: `shown_value("sk-1", "args", "api_key")` is `NOT_REPEATED`, `shown_value({"pwd": "x", "n": 2})` is `"{'pwd': '…', 'n': 2}"`.
    """
    if not _says_nothing(value) and any(may_hold_secret(part) for one in place for part in str(one).split(".")):
        return NOT_REPEATED
    text = repr(without_named_secrets(value))
    return text if len(text) <= most else f"{text[:most]}…"


def without_named_secrets(value: Any, depth: int = DEEPEST) -> Any:
    """A value with the texts in it shown `without_secrets`, and what fields hold that are called like secrets taken out."""
    if isinstance(value, str):
        return without_secrets(value)
    if depth == 0 and isinstance(value, Mapping | list | tuple):
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if may_hold_secret(str(key)) and not _says_nothing(item) else without_named_secrets(item, depth - 1)
            for key, item in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(without_named_secrets(item, depth - 1) for item in value)
    return value


def _says_nothing(value: Any) -> bool:
    return value is None or isinstance(value, bool) or (isinstance(value, str) and not value)


def _read(name: str) -> str:
    """A name as whoever is asked reads it; some read twice."""
    return unquote_plus(unquote_plus(name)).strip()


def is_here(url: str) -> bool:
    """Whether a URL leads to this machine: then no proxy that the environment names knows its ports. Example: `http://[::1]:8000/v1`."""
    return is_loopback(urlsplit(url).hostname or "")


def check_url(url: str, token: str | None) -> None:
    """Raise ValueError unless calls may go to `url`.

    A URL holds no secret of its own, and where calls carry one (token: what it is called, None for none) the way is encrypted or does
    not leave this machine.
    """
    for secret in secrets_in(url):
        raise ValueError(f"the URL holds {secret}, and would be stored with the run; send a token in its own variable, by its name")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL: {error}") from None
    if token is not None and parts.scheme.lower() != "https" and not is_loopback(host):
        raise ValueError(f"{without_secrets(url)} is not https, so the {token} would travel in the clear; use https://, or leave it out")
