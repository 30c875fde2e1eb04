"""A text that is decided on while it is written: what is let out cannot be taken back, so a little of it is held.

stream = StreamGuard(guard)
for piece in pieces:
    print(stream.feed(piece), end="")
print(stream.end())
stream.decision.action
"""

from __future__ import annotations

import re

from .asks import Asks
from .guard import Guard, redacted, within
from .types import Decision

HOLD = 96
"""Characters at the end of what was written that are held while their sentence goes on: a phrase or a number may still be growing there."""
LONGEST_WORD = 512
"""Characters without a space that are held for as long; an encoded text is one long word."""
EVERY = 24
"""Characters between two looks, unless a sentence ends before."""
ASKED_EVERY = 400
"""Characters between two looks that ask something elsewhere, sentences or not. What is between waits for the look: all of it is judged."""
SHORTEST = 8
"""Characters of a sentence whose end is looked at by itself: each look takes in all of the window, and short lines are many."""
WINDOW = 4000
"""Characters that went out already and that a look takes in; the whole text is looked at when it ends."""

_END = re.compile(r"[.!?。！？][\"')\]]*\s|\n|[。！？]")


class StreamGuard:
    """Decides on one text as it comes in pieces. Nothing of what a policy blocks or redacts is let out as far as the hold reaches.

    `decision` is None until the text ends or is blocked. A topic that takes several sentences to show is found when it shows: what came
    before has gone out. before, asks, context: as `Guard.check` has them. Where it must
    follow from a context, all of it is held until it ends.
    """

    def __init__(self, guard: Guard, before: str = "", asks: Asks | None = None, context: str | None = None) -> None:
        self._guard, self._before, self._budget, self._context = guard, before, asks, context
        self._waits = guard.waits_for_all_of(context)
        self._asks = guard.asks("output")
        self._text = ""
        self._sent = 0
        self._looked = 0
        self.decision: Decision | None = None

    @property
    def blocked(self) -> bool:
        """Whether the text was blocked: nothing of it goes out any more."""
        return self.decision is not None and self.decision.blocked

    @property
    def begun(self) -> bool:
        """Whether something of the text has gone out."""
        return self._sent > 0

    def feed(self, piece: str) -> str:
        """What may go out now. Raises what `Guard.check` raises."""
        if self.blocked:
            return ""
        assert self.decision is None, "the text has ended"
        self._text += piece
        fresh = self._text[self._looked :]
        held = len(self._text) - self._sent
        if len(fresh) < (held - LONGEST_WORD) // 8:  # so that what is held for long is not looked at ever again
            return ""
        if len(fresh) < (ASKED_EVERY if self._asks else SHORTEST):
            return ""
        if len(fresh) < EVERY and not _END.search(self._text, max(0, self._looked - 4)):
            return ""
        self._looked = len(self._text)
        base = max(0, self._sent - WINDOW)
        decision = self._guard.check(self._text[base:], "output", before="" if base else self._before, asks=self._budget)
        if decision.blocked:
            self.decision = decision
            return ""
        return "" if self._waits else self._let_out(self._safe(decision, base), decision, base)

    def end(self) -> str:
        """The rest of the text, with a warning below it where the policy wants one. Raises what `Guard.check` raises."""
        if self.blocked:
            return ""
        self.decision = self._guard.check(self._text, "output", self._context, self._before, self._budget)
        if self.decision.blocked:
            return ""
        return self._let_out(len(self._text), self.decision, 0) + self.decision.below

    def _safe(self, decision: Decision, base: int) -> int:
        """How far the text may go out: to the end of the last sentence, or as far as the hold allows, but not into a word or a finding.

        What is found up to the end of the text may be going on: a private key has not ended.
        """
        ends = [match.end() for match in _END.finditer(self._text, self._sent)]
        limit = max([len(self._text) - HOLD, *ends])
        if limit <= self._sent:
            return self._sent
        if limit not in ends:
            space = max(self._text.rfind(gap, self._sent, limit) + 1 for gap in " \n\t")
            limit = space if space > self._sent else (limit if limit - self._sent > LONGEST_WORD else self._sent)
        for finding in decision.findings:
            end = base + finding.end + (base + finding.end == len(self._text))
            if finding.action == "redact" and base + finding.start < limit < end:
                limit = max(self._sent, base + finding.start)
        return limit

    def _let_out(self, until: int, decision: Decision, base: int) -> str:
        """The text from where it was let out last, redacted."""
        start, self._sent = self._sent, until
        return redacted(self._text[start:until], within(decision.findings, start - base, until - base))
