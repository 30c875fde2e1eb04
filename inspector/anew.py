"""Questions about a store that changes while they are answered."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from .index import last_change

TIMES: Final = 3
"""How often a question is asked again."""


class OfStore(Protocol):
    """Answers questions about the store in a folder."""

    @property
    def folder(self) -> Path: ...


S = TypeVar("S", bound=OfStore)
P = ParamSpec("P")
T = TypeVar("T")


def anew(ask: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A question that is asked anew where it cannot be answered and files came or went meanwhile: a run takes steps back, and keeps so
    many, and whoever makes the index replaces parts of it."""

    @wraps(ask)
    def asked(about: S, /, *args: P.args, **named: P.kwargs) -> T:
        for _ in range(TIMES):
            before = last_change(about.folder)
            try:
                return ask(about, *args, **named)
            except (OSError, ValueError):
                if last_change(about.folder) == before:
                    raise
        return ask(about, *args, **named)

    return asked
