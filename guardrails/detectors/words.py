"""`burnish/words-v1`: the policy's words and patterns."""

from __future__ import annotations

from collections.abc import Iterator

from ..patterns import compiled, spans, words_expression
from ..policy import DetectorUse, Policy
from ..registry import Find, detector
from ..types import Match


@detector("burnish/words-v1")
def words(policy: Policy, use: DetectorUse) -> Find:
    """Finds `[[words]]`, whole and in any case, and `[[patterns]]`."""
    rules = [(rule.name, rule.category, expression, 1) for rule in policy.words for expression in words_expression(rule.words)]
    rules += [(rule.name, rule.category, compiled(rule.pattern, rule.ignore_case, over_lines=True), 0) for rule in policy.patterns]

    def find(text: str) -> Iterator[Match]:
        for name, category, expression, group in rules:
            yield from (Match(name, category, start, end) for start, end in spans(expression, text, group))

    return find
