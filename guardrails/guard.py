"""A policy at work: the one place where a text is decided on, whatever the decision is for.

guard = Guard(load_policy("policy.toml"))
decision = guard.check("My card is 4111 1111 1111 1111", "input")
decision.action, decision.text          # "redact", "My card is [CREDIT_CARD]"
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate, chain

from ..envs.registry import did_you_mean
from .asks import UNASKED, Asks
from .factuality import Claim, grounding
from .patterns import compiled, spans, words_expression
from .policy import ACTIONS, Action, DetectorUse, Place, Policy
from .readings import Reading, check_length, readings
from .registry import DetectorPlugin, Find, find_detector
from .types import MAX_EVIDENCE, Decision, Finding, Match, Sourced, strictest

GROUNDING = "burnish/grounding-v1"
MANY = ("burnish/words-v1", "burnish/topics-v1")
"""Detectors whose rules have categories of their own. Others find that of their entry alone, and are called only where it is looked for."""
SEAM = 512
"""Characters before a text, and of it, that are looked at together where it goes on from another."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A detector at work. category: the only one that it finds; None where its rules have their own."""

    plugin: DetectorPlugin
    find: Find
    name: str
    category: str | None


class Guard:
    """Decides on texts by a policy. It holds compiled expressions and vectors, so make it once; threads may share it.

    skip: categories that are left out here. Raises ValueError when one is unknown or always on, and when a detector cannot be made.
    """

    def __init__(self, policy: Policy, skip: Sequence[str] = ()) -> None:
        for name in skip:
            if name not in policy.categories:
                raise ValueError(f"policy {policy.name} has no category {name!r}{did_you_mean(name, list(policy.categories))}")
            if policy.categories[name].always_on:
                raise ValueError(f"category {name!r} of policy {policy.name} is always on; it cannot be skipped")
        self.policy = policy
        self._on = {name for name, category in policy.categories.items() if category.enabled and name not in skip}
        self._detectors = [
            _Made((plugin := _found(policy, use)), plugin.make(policy, use), use.name, None if use.use in MANY else use.category)
            for use in _uses(policy)
        ]
        self._allowed = [(expression, 1) for one in policy.allowed if one.texts for expression in words_expression(one.texts)]
        self._allowed += [(compiled(pattern), 0) for one in policy.allowed for pattern in one.patterns]

    def check(
        self,
        text: str,
        where: Place,
        context: str | Sequence[Sourced] | None = None,
        before: str = "",
        asks: Asks | None = None,
    ) -> Decision:
        """What becomes of a text that is asked ("input") or answered ("output"). context: what an answer must follow from, or the stretches
        of it that must follow from something, each held to the policy's threshold. before: what the text goes on from, decided on already:
        of it counts what reaches into the text. asks: what detectors that ask something elsewhere take their calls from; where there is
        none left, the text counts as found by them, all of it.

        Raises ValueError when the text is too long to be looked at, and what a detector raises: such a text must not go on.
        """
        check_length(text)
        latency: dict[str, float] = {}
        sourced: Sequence[Sourced] = [Sourced(0, len(text), context)] if isinstance(context, str) else context or ()
        findings = tuple(self._counting(text, where, latency, sourced, asks=asks))
        if before:
            end, begin = before[-SEAM:], text[:SEAM]
            over = [one for one in self._counting(end + begin, where, latency, over=True, asks=asks) if one.start < len(end) < one.end]
            findings = (*within(over, len(end), len(end) + len(begin)), *findings)
        action = strictest([finding.action for finding in findings])
        blocked = ACTIONS.index(action) >= ACTIONS.index("redirect")
        message = next((self.policy.message(f.category, action) for f in findings if f.action == action), "")
        return Decision(self.policy.id, where, action, findings, "" if blocked else redacted(text, findings), message, latency)

    def without_asking(self) -> Guard:
        """The same, without the detectors that ask something that runs elsewhere."""
        other = copy(self)
        other._detectors = [made for made in self._detectors if not made.plugin.asks]
        return other

    def of_contexts_alone(self) -> Guard:
        """The same, but that it looks for nothing else than whether answers follow from their contexts."""
        other = copy(self)
        other._detectors = []
        return other

    def waits_for_all_of(self, context: str | None) -> bool:
        """Whether nothing of an answer with such a context may go out before its end, when it is known how much of it follows from that. A
        warning can stand below."""
        table = self.policy.grounding
        if context is None or table is None or table.category not in self._looked_at("output"):
            return False
        return self.policy.categories[table.category].action != "warn"

    def asks(self, where: Place) -> bool:
        """Whether each look there asks something that runs elsewhere."""
        return any(made.plugin.asks for made in self._called(where))

    def _called(self, where: Place) -> list[_Made]:
        """The detectors that may find what is looked for there."""
        looked_at = self._looked_at(where)
        return [made for made in self._detectors if made.category is None or made.category in looked_at]

    def _looked_at(self, where: Place) -> set[str]:
        return {name for name in self._on if where in self.policy.categories[name].where}

    def _counting(
        self,
        text: str,
        where: Place,
        latency: dict[str, float],
        sourced: Sequence[Sourced] = (),
        over: bool = False,
        asks: Asks | None = None,
    ) -> Iterator[Finding]:
        """What is found of the categories that look here, and is not excused. over: it is an end and a beginning, of two texts."""
        looked_at = self._looked_at(where)
        called = [made for made in self._called(where) if not (over and made.plugin.whole)]
        found = self._found(text, latency, called, asks)
        if sourced and where == "output" and self.policy.grounding is not None:
            started = time.perf_counter()
            found += [finding for one in sourced for finding in self._ungrounded(text, one)]
            latency["grounding"] = time.perf_counter() - started
        return self._not_excused(text, [finding for finding in found if finding.category in looked_at])

    def _found(self, text: str, latency: dict[str, float], detectors: Sequence[_Made], asks: Asks | None = None) -> list[Finding]:
        """What these detectors find, one reading after the other, so that no more than one is kept.

        Those that ask come last: a text that cannot be looked at here is no reason to pay for a judge.
        """
        for name in ("readings", *(made.name for made in self._detectors)):
            latency.setdefault(name, 0.0)
        found: dict[tuple[str, int, int], Finding] = {}
        original = Reading("original", "original", text)
        here, elsewhere = ([made for made in detectors if made.plugin.asks is asks] for asks in (False, True))
        ways = chain([(original, here)], ((way, here) for way in readings(text)), [(original, elsewhere)])
        started = time.perf_counter()
        for way, called in ways:
            latency["readings"] += time.perf_counter() - started
            for made in called:
                if way.kind in made.plugin.reads:
                    started = time.perf_counter()
                    for match, read in self._matches(way, made, asks):
                        start, end = self._origin(match, read, made)
                        if (match.rule, start, end) not in found:  # of what is decoded, every match stands for the whole stretch
                            found[match.rule, start, end] = self._finding(text, match, read, made, start, end)
                    latency[made.name] += time.perf_counter() - started
            started = time.perf_counter()
        latency["readings"] += time.perf_counter() - started
        return sorted(found.values(), key=lambda one: (one.start, one.end, one.rule))

    def _matches(self, way: Reading, made: _Made, asks: Asks | None) -> Iterable[tuple[Match, Reading]]:
        """What a detector finds in a reading, and the reading; where it may not be asked any more, all of the text."""
        if not (made.plugin.asks and way.text and asks is not None) or asks.take():
            return ((match, way) for match in made.find(way.text))
        assert made.category is not None, "what asks is named by the policy, for one category"
        return [(Match(made.name, made.category, 0, len(way.text)), replace(way, name=UNASKED))]

    def _origin(self, match: Match, way: Reading, made: _Made) -> tuple[int, int]:
        """Where a match lies in the text as it came. Raises ValueError for one that its detector may not make."""
        if match.category not in self.policy.categories:
            raise ValueError(f"detector {made.plugin.id} found {match.category!r}, which is no category of policy {self.policy.name}")
        if made.category is not None and match.category != made.category:
            raise ValueError(f"detector {made.plugin.id} found {match.category!r}, and {made.name!r} is of category {made.category!r}")
        if not 0 <= match.start < match.end <= len(way.text):
            where = f"{match.start} to {match.end} of {len(way.text)} characters"
            raise ValueError(f"detector {made.plugin.id} found {match.rule!r} at {where}")
        return way.origin(match.start, match.end)

    def _finding(self, text: str, match: Match, way: Reading, made: _Made, start: int, end: int) -> Finding:
        action: Action = match.action or self.policy.categories[match.category].action
        evidence = text[start : min(end, start + MAX_EVIDENCE)]
        return Finding(match.rule, match.category, action, start, end, evidence, made.plugin.id, way.name, match.score)

    def _ungrounded(self, text: str, one: Sourced) -> list[Finding]:
        table = self.policy.grounding
        assert table is not None
        said, (begin, end) = text[one.start : one.end], one.calls
        found = grounding(said[:begin] + "\n" * (end - begin) + said[end:], one.context)
        if found.score >= table.threshold:
            return []
        return [self._claim(text, claim, one.start) for claim in found.claims if not claim.supported]

    def _claim(self, text: str, claim: Claim, begin: int) -> Finding:
        assert self.policy.grounding is not None
        category, start, end = self.policy.grounding.category, begin + claim.start, begin + claim.end
        evidence = text[start : min(end, start + MAX_EVIDENCE)]
        action = self.policy.categories[category].action
        return Finding("grounding", category, action, start, end, evidence, GROUNDING, score=claim.score)

    def _not_excused(self, text: str, findings: Sequence[Finding]) -> Iterator[Finding]:
        """Those that do not lie inside of what the policy says must be allowed. Nothing excuses a category that is always on."""
        allowed = sorted(span for expression, group in self._allowed for span in spans(expression, text, group)) if findings else []
        starts = [start for start, _ in allowed]
        reached = list(accumulate((end for _, end in allowed), max))  # the farthest end of those that begin no later
        for finding in findings:
            before = bisect_right(starts, finding.start)
            inside = before > 0 and finding.end <= reached[before - 1]
            if self.policy.categories[finding.category].always_on or not inside:
                yield finding


def _found(policy: Policy, use: DetectorUse) -> DetectorPlugin:
    try:
        return find_detector(use.use)
    except ValueError as error:
        place = f"detectors.{policy.detectors.index(use)}.use: " if use in policy.detectors else ""
        raise ValueError(f"{policy.source}: {place}{error}") from error


def _uses(policy: Policy) -> Iterator[DetectorUse]:
    """The detectors that the policy's tables ask for, and those that it names."""
    any_category = next(iter(policy.categories))
    if policy.words or policy.patterns:
        yield DetectorUse(use="burnish/words-v1", name="words", category=any_category)  # its rules have their own categories
    if policy.pii is not None:
        yield DetectorUse(use="burnish/pii-v1", name="pii", category=policy.pii.category)
    if policy.topics:
        yield DetectorUse(use="burnish/topics-v1", name="topics", category=any_category)
    if policy.languages is not None:
        yield DetectorUse(use="burnish/script-v1", name="script", category=policy.languages.category)
    yield from policy.detectors


def redacted(text: str, findings: Sequence[Finding]) -> str:
    """The text with `[RULE]` in the place of every finding that is to be redacted; those that overlap are one."""
    made, done = [], 0
    for finding in sorted((one for one in findings if one.action == "redact"), key=lambda one: (one.start, -one.end)):
        if finding.end <= done:
            continue
        if finding.start >= done:
            made += [text[done : finding.start], f"[{finding.rule.upper()}]"]
        done = finding.end
    return "".join([*made, text[done:]])


def within(findings: Iterable[Finding], start: int, end: int) -> list[Finding]:
    """The findings in characters start to end of their text, as findings of that part; those that reach beyond it are cut."""
    return next(parted(findings, [(start, end)]))


def parted(findings: Iterable[Finding], parts: Iterable[tuple[int, int]]) -> Iterator[list[Finding]]:
    """`within` for each of several parts of a text, in their order, in one pass over both."""
    waiting, reaching = deque(sorted(findings, key=lambda one: one.start)), list[Finding]()
    for start, end in parts:
        while waiting and waiting[0].start < end:
            reaching.append(waiting.popleft())
        reaching = [one for one in reaching if start < one.end]
        yield [replace(one, start=max(0, one.start - start), end=min(end, one.end) - start) for one in reaching]
