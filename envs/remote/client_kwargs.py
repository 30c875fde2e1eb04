"""What a client of an environment service may set: arguments that the server allows by name, to plain values.

A server resolves functions, ids, files and addresses only where its own command line names them. An environment takes such names as
ordinary strings (`describe = "words.py:describe"`, `tools = "10.0.0.5:50052"`), so a string of a client that reads as one is refused
before the environment sees it, in whichever argument, however deep, key or value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ...rpc.errors import Status
from ...rpc.urls import shown_value

_NAMES = (
    (re.compile(r"\.py(:|\s*\Z)", re.IGNORECASE), "a Python file"),
    (re.compile(r"\S:\S"), "a function or an address"),  # module:name, host:port, ray:name, https://…
    (re.compile(r"-v\d+\s*\Z"), "an id"),
    (re.compile(r"\A\s*[/~\\]|(\A|[/\\])\.\.([/\\]|\Z)"), "a path that leaves the server's folder"),
)
"""What the resolvers take (`load_function`, `make_env`, `gymnasium.make`, `Endpoint.parse`), and paths; each accepts no other strings."""


def check_client_kwargs(id: str, kwargs: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raise Status INVALID_ARGUMENT unless every argument is allowed and every string in it is only a string."""
    for key, value in kwargs.items():
        if key not in allowed:
            known = f"clients may set {', '.join(sorted(allowed))}" if allowed else "clients may set none"
            hint = "what it is made with is the server's own (`burnish serve-env --arg`, `--allow-arg`)"
            raise Status("INVALID_ARGUMENT", f"environment {id!r}: {key!r:.80} is not for clients to set: {known}; {hint}")
        for text in _strings(value):
            meaning = names_something(text)
            if meaning is not None:
                raise Status(
                    "INVALID_ARGUMENT",
                    f"environment {id!r}, {key!r}: {shown_value(text, key)} reads as {meaning}, which no client may name",
                )


def names_something(text: str) -> str | None:
    """What code could take a string for, beyond a word: "a Python file", "a path", …; None for plain text.

    Example: `names_something("words.py:describe")` is "a Python file"; `names_something("Answer: yes or no")` is None.
    """
    return next((meaning for pattern, meaning in _NAMES if pattern.search(text)), None)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (key, *_strings(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
