"""URLs: what in them is a secret, and where secrets may be sent.

A recipe is stored with its run, and what a call failed with in transcripts and logs. So a URL in a recipe holds no secret (it is refused,
and its message does not repeat it), and whatever text may hold the URL of somebody else is shown `without_secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from .security import is_loopback

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_USER = re.compile(r"(?<=://)[^/?#]*@")
_PARAMETER = re.compile(
    r"(?<=[?&;])((?:[\w.-]*[-_.])?(?:token|secret|password|passwd|pwd|signature|sig|key|apikey|credential|auth|code|jwt|sas))=[^&;#]*",
    re.IGNORECASE,
)
HIDDEN = "…"


def without_secrets(text: str, *secrets: str) -> str:
    """The text with user names, passwords and parameters called like secrets taken out of its URLs, and `secrets` themselves.

    Example: `without_secrets("GET https://me:pw@h/x?code=1&n=2 failed")` is `"GET https://…@h/x?code=…&n=2 failed"`.
    """
    for secret in filter(None, secrets):
        text = text.replace(secret, HIDDEN)
    if "://" not in text:
        return text
    return _URL.sub(lambda url: _PARAMETER.sub(rf"\1={HIDDEN}", _USER.sub(f"{HIDDEN}@", url[0])), text)


def secrets_in(text: str) -> Iterator[str]:
    """What in the URLs of a text is a secret, in words that do not repeat it.

    Example: `list(secrets_in("https://me:pw@h/x?code=1"))` is `["a user name or password", "the parameter 'code'"]`.
    """
    for url in _URL.findall(text) if "://" in text else ():
        if _USER.search(url):
            yield "a user name or password"
        yield from (f"the parameter {name!r}" for name in _PARAMETER.findall(url))


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
