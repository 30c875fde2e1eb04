"""`burnish/script-v1`: a text mostly in a script that none of the policy's languages is written in."""

from __future__ import annotations

from collections.abc import Iterator

from ..policy import DetectorUse, Policy
from ..registry import Find, detector
from ..scripts import SCRIPTS_OF, scripts
from ..types import Match

SHARE = 0.5
FEWEST = 4
"""Letters that say something about a text."""


@detector("burnish/script-v1", reads=("plain",), whole=True)
def script(policy: Policy, use: DetectorUse) -> Find:
    """Finds nothing in a text of fewer than four letters. It tells scripts apart, not the languages that share one."""
    spoken = frozenset().union(*(SCRIPTS_OF[code] for code in policy.languages.spoken)) if policy.languages is not None else frozenset()

    def find(text: str) -> Iterator[Match]:
        counts = scripts(text)
        letters = sum(counts.values())
        foreign = sum(count for name, count in counts.items() if name not in spoken)
        if letters >= FEWEST and foreign > SHARE * letters:
            yield Match(use.name, use.category, 0, len(text), score=foreign / letters)

    return find
