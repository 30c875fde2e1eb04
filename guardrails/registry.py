"""Detectors by id, found as rewards are: the entry-point group is `burnish.detectors`.

    @detector("my-team/shouting-v1", whole=True)
    def shouting(policy: Policy, use: DetectorUse) -> Find:
        def find(text: str) -> Iterator[Match]:
            if text.isupper():
                yield Match(use.name, use.category, 0, len(text))
        return find

A detector is made once for a policy, so that it can compile what it needs; what it makes is called with every text, by several threads.
What it raises is raised: a text that could not be looked at is not allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..envs.callables import source_of
from ..envs.registry import Registry, check_id
from .policy import DetectorUse, Policy
from .types import Match

Find = Callable[[str], Iterable[Match]]
"""Finds matches in a text."""
MakeDetector = Callable[[Policy, DetectorUse], Find]

Reads = Literal["original", "plain", "decoded", "folded"]
"""How a text is read: as it came; with Unicode's variants and invisible characters undone; what is encoded in it; with look-alikes, digits
for letters and spaced letters undone."""
ALL: tuple[Reads, ...] = ("plain", "decoded", "folded")

F = TypeVar("F", bound=MakeDetector)


@dataclass(frozen=True, slots=True)
class DetectorPlugin:
    """A registered detector.

    reads: the readings of a text that it is given. whole: what it finds is a verdict on the text as a whole, so it is not given the end of
    one text with the beginning of the next. asks: it asks something that runs elsewhere, which takes time and money and may fail: it is
    called after all others, and while a text is written only now and then.
    """

    id: str
    make: MakeDetector
    reads: tuple[Reads, ...]
    whole: bool = False
    asks: bool = False


DETECTORS: Registry[DetectorPlugin] = Registry("detector", "burnish.detectors")


def detector(id: str, reads: tuple[Reads, ...] = ALL, *, whole: bool = False, asks: bool = False) -> Callable[[F], F]:
    """Register a function that makes a detector; the function itself is unchanged. whole, asks: as `DetectorPlugin` has them.

    Raises ValueError on a malformed id, and for one that asks about more than the original: each reading would be a request.
    """
    check_id(id, "detector")
    if asks and reads != ("original",):
        raise ValueError(f"detector {id!r} asks something elsewhere, so it gets each text once: give it reads=('original',)")

    def register(make: F) -> F:
        DETECTORS.register(id, DetectorPlugin(id, make, reads, whole, asks), source_of(make))
        return make

    return register


def find_detector(id: str) -> DetectorPlugin:
    """The detector `id`. Raises ValueError when it is unknown, or what is registered was not made with `@detector`."""
    plugin = DETECTORS.get(id)
    if not isinstance(plugin, DetectorPlugin):
        raise ValueError(f"detector {id!r} is a {type(plugin).__name__} without the @detector decorator; decorate the function it names")
    return plugin
