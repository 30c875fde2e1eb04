"""What a guardrail decides: the same types whether data is filtered, a reward is given, a model measured or a service guarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .policy import ACTIONS, Action, Place

MAX_EVIDENCE = 200
"""Characters of a text that a finding repeats."""
MOST_TOLD = 100
"""Findings that an answer or a line of a log tells of."""


@dataclass(frozen=True, slots=True)
class Match:
    """What a detector found: `start` and `end` in the text it was given. action: instead of the category's own; PII kinds have one each.

    Example: `Match("email", "personal-data", 11, 26, "redact")`.
    """

    rule: str
    category: str
    start: int
    end: int
    action: Action | None = None
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Sourced:
    """A stretch of a text, and the context that it must follow from. calls: from where to where, counted from `start`, it is calls of
    tools, which follow from nothing.

    Example: `Sourced(0, 5, "The bore is 12 mm.")`.
    """

    start: int
    end: int
    context: str
    calls: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for a decision.

    start, end: characters of the text as it came. evidence: those characters, at most 200. detector: its id. reading: how the text had to
    be read for it ("plain", "base64", "rot13", "lookalikes", …). score: how sure the detector is, where it says so.
    """

    rule: str
    category: str
    action: Action
    start: int
    end: int
    evidence: str
    detector: str
    reading: str = "plain"
    score: float = 1.0

    def to_row(self, evidence: bool = True) -> dict[str, Any]:
        """As JSON. evidence: False leaves out what the text said, for logs."""
        row = {name: getattr(self, name) for name in ("rule", "category", "action", "start", "end", "detector", "reading")}
        row["score"] = round(self.score, 4)
        return {**row, "evidence": self.evidence} if evidence else row


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a text, and why.

    policy: id of the policy. where: "input" or "output". action: the strictest of the findings'. text: what may go on, with what is to be
    redacted replaced; "" where nothing may. message: what is said instead, or beside it for "warn". latency_s: seconds that each detector
    took, of which equality knows nothing. told: of the findings, what rows tell (`told`), chosen where the text is looked at.
    """

    policy: str
    where: Place
    action: Action
    findings: tuple[Finding, ...]
    text: str
    message: str
    latency_s: Mapping[str, float] = field(default_factory=dict, compare=False)
    told: tuple[Finding, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "told", told(self.findings))

    @property
    def blocked(self) -> bool:
        """Whether the text may not go on at all."""
        return ACTIONS.index(self.action) >= ACTIONS.index("redirect")

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that were found, sorted."""
        return tuple(sorted({finding.category for finding in self.findings}))

    @property
    def reply(self) -> str:
        """What the reader gets: the message where the text is blocked, the text with the message below it for a warning, else the text."""
        if self.blocked:
            return self.message
        return self.text + self.below

    @property
    def below(self) -> str:
        """What stands below a text that goes on with a warning, "" where there is none."""
        return f"\n\n{self.message}" if self.action == "warn" else ""

    def to_row(self, evidence: bool = True) -> dict[str, Any]:
        """As JSON: `found` findings in all, those that are told one by one. evidence: False leaves out everything that the text said."""
        return {
            "policy": self.policy,
            "where": self.where,
            "action": self.action,
            "found": len(self.findings),
            "findings": [finding.to_row(evidence) for finding in self.told],
            "latency_ms": {name: round(seconds * 1000, 3) for name, seconds in self.latency_s.items()},
        }


def told(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The first of those that say the same of the same words, in their order, and of every rule one where not all can be told: a text of a
    megabyte may have hundreds of thousands."""
    rules, words = dict[object, Finding](), dict[object, Finding]()
    for one in findings:
        rules.setdefault((one.rule, one.action), one)
        if len(words) < MOST_TOLD:
            words.setdefault((one.rule, one.action, one.reading, one.evidence), one)
    chosen = list(dict.fromkeys((*rules.values(), *words.values())))[:MOST_TOLD]
    return tuple(sorted(chosen, key=lambda one: (one.start, one.end)))


def strictest(actions: Sequence[Action]) -> Action:
    """Of several actions the one that is done; "allow" of none."""
    return max(actions, key=ACTIONS.index, default="allow")
