"""Canaries under judgement: which answers are judged, what the verdicts say, and when a canary has to go.

Plain, and on one event loop: `consider` is called with every answer and returns at once. Verdicts count in the order in which their answers
were taken, so that it does not matter which of them take longer. A judge that fails gives no verdict: it is left alone for longer and
longer, and after so many failures in a row no more is asked of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from ...rpc.pauses import growing_pause
from ..observed import Answered, Choice, Question
from .config import JudgeTable
from .evidence import log_evidence
from .judge import JudgedAnswer

MOST_UNDER_WAY: Final = 32
"""Judgements of one canary at a time; answers that come meanwhile are not judged."""
MOST_AHEAD: Final = 16
"""Answers of one side that are judged beyond those of the other: without their like they say nothing."""
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
HELD_BACK: Final = "content_filter"
_log = logging.getLogger(__name__)


class JudgeOutage(Exception):
    """A judgement that failed: the judge's doing, or that of what lies between. It is no verdict."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A version on trial. model: what clients ask for. primary: the served name of the version that it is compared with."""

    model: str
    primary: str
    judge: JudgeTable


@dataclass(frozen=True, slots=True)
class Judgement:
    """Where a canary stands. state: "off" when its judge failed too often, which `why` says. pairs: answers of each side that count."""

    canary: str
    primary: str
    state: Literal["judging", "off", "rolled back"]
    pairs: int
    canary_passed: int
    primary_passed: int
    log_evidence: float
    error: float
    why: str = ""

    @property
    def line(self) -> str:
        """For a log. Example: `m:v2 is rolled back: 12 of 30 answers passed, and 28 of 30 of m:v1; evidence 61 of 20 (error 5 %)`."""
        counts = f"{self.canary_passed} of {self.pairs} answers passed, and {self.primary_passed} of {self.pairs} of {self.primary}"
        figures = f"{counts}; evidence {math.exp(min(self.log_evidence, 700)):.3g} of {1 / self.error:.3g} (error {self.error:.3g})"
        if self.state == "off":
            return f"{self.canary} is no longer judged, and answers on: {self.why}; until then {figures}"
        return f"{self.canary} is {self.state}: {figures}"


class VerdictCounts(Protocol):
    """Where verdicts are counted (`audit.Metrics`)."""

    def judged(self, version: str, verdict: str) -> None: ...


@dataclass(slots=True)
class _Slot:
    """An answer that was taken. passed: None until there is a verdict, and where there never will be."""

    over: bool = False
    passed: bool | None = None


@dataclass(slots=True)
class _Side:
    """One of two versions. taken: answers of which the verdict counts, or may yet."""

    taken: int = 0
    waiting: deque[_Slot] = field(default_factory=deque)
    verdicts: deque[bool] = field(default_factory=deque)

    def settle(self) -> None:
        while self.waiting and self.waiting[0].over:
            passed = self.waiting.popleft().passed
            if passed is None:
                self.taken -= 1
            else:
                self.verdicts.append(passed)


class _Trial:
    """One canary's."""

    def __init__(self, name: str, canary: Canary) -> None:
        self.name, self.canary = name, canary
        self.sides = {name: _Side(), canary.primary: _Side()}
        self.state: Literal["judging", "off", "rolled back"] = "judging"
        self.pairs = self.canary_passed = self.primary_passed = 0
        self.failures, self.why, self.paused_until = 0, "", -math.inf

    def takes(self, version: str, now: float) -> bool:
        """Whether an answer of this version may be judged now."""
        if self.state != "judging" or version not in self.sides or now < self.paused_until:
            return False
        mine, least = self.sides[version], min(side.taken for side in self.sides.values())
        under_way = sum(len(side.waiting) for side in self.sides.values())
        return under_way < MOST_UNDER_WAY and mine.taken - least < MOST_AHEAD

    def settle(self) -> None:
        """Count what can be counted; the canary goes as soon as there is enough against it."""
        canary, primary = self.sides[self.name], self.sides[self.canary.primary]
        canary.settle()
        primary.settle()
        while self.state == "judging" and canary.verdicts and primary.verdicts:
            self.pairs += 1
            self.canary_passed += canary.verdicts.popleft()
            self.primary_passed += primary.verdicts.popleft()
            if self.log_evidence >= -math.log(self.canary.judge.error):
                self.state = "rolled back"

    def failed(self, why: str, now: float) -> None:
        self.why = f"its judge failed {self.failures + 1} times in a row, last: {why}"
        self.paused_until = now + growing_pause(self.failures, FIRST_PAUSE_S, MOST_PAUSE_S)
        self.failures += 1
        if self.failures >= self.canary.judge.outages and self.state == "judging":
            self.state = "off"

    @property
    def log_evidence(self) -> float:
        return log_evidence(self.pairs, self.canary_passed, self.primary_passed)

    @property
    def judgement(self) -> Judgement:
        counts = (self.pairs, self.canary_passed, self.primary_passed)
        return Judgement(self.name, self.canary.primary, self.state, *counts, self.log_evidence, self.canary.judge.error, self.why)


class CanaryWatch:
    """Judges a share of answers.

    ask: gives the value of an exchange by the judge of a canary, named first; raises JudgeOutage when it does not. roll_back: called with
    the name of a canary that has to go. keep: stores an answer that failed, None stores none.
    """

    def __init__(
        self,
        ask: Callable[[str, JudgedAnswer], Awaitable[float]],
        roll_back: Callable[[str], None],
        counts: VerdictCounts,
        keep: Callable[[Answered, Question, Choice, dict[str, bool]], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._ask, self._roll_back, self._counts, self._keep, self._clock, self._draw = ask, roll_back, counts, keep, clock, draw
        self._trials: dict[str, _Trial] = {}
        self._tasks = set[asyncio.Task[None]]()

    def follow(self, canaries: Mapping[str, Canary]) -> None:
        """Judge these canaries, by their served names. One that is compared with another version begins anew."""
        kept = {name: trial for name, trial in self._trials.items() if canaries.get(name) == trial.canary}
        self._trials = {name: kept.get(name) or _Trial(name, canary) for name, canary in canaries.items()}

    def consider(self, answered: Answered) -> None:
        """Have an answer judged, if it is to be: one of a chat, to who asked for the model, and for no version of it."""
        record = answered.record
        if record.route != "chat":
            return
        for trial in self._trials.values():
            if record.model != trial.canary.model or not trial.takes(record.version, self._clock()):
                continue
            if self._draw() >= trial.canary.judge.share:
                continue
            slot, side = _Slot(), trial.sides[record.version]
            side.waiting.append(slot)
            side.taken += 1
            task = asyncio.get_running_loop().create_task(self._judge(trial, slot, answered))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def judgements(self) -> dict[str, Judgement]:
        """Where every canary stands."""
        return {name: trial.judgement for name, trial in self._trials.items()}

    async def settled(self) -> None:
        """Return once nothing is being judged."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _judge(self, trial: _Trial, slot: _Slot, answered: Answered) -> None:
        version, choice = answered.record.version, None
        try:
            choice = next(iter(answered.choices()), None)
            slot.passed = await self._verdict(trial, answered, choice) if choice is not None else None
            if slot.passed is not None:
                self._counts.judged(version, "passed" if slot.passed else "failed")
        except JudgeOutage as error:
            self._counts.judged(version, "outage")
            trial.failed(str(error), self._clock())
        finally:
            slot.over = True
            before = trial.state
            trial.settle()
            if trial.state == "rolled back" and before != "rolled back":
                self._roll_back(trial.name)
        if slot.passed is False and choice is not None and self._keep is not None:
            await self._keep(answered, _question(answered), choice, {trial.canary.judge.name: False})

    async def _verdict(self, trial: _Trial, answered: Answered, choice: Choice) -> bool | None:
        """Whether an answer passed; None where it is none yet. One that a policy held back has failed."""
        if choice.finish_reason == HELD_BACK:
            return False
        if choice.message.get("tool_calls"):
            return None
        cut = choice.finish_reason == "length"
        value = await self._ask(trial.name, JudgedAnswer(answered.record.id, _question(answered).messages, choice.message, cut))
        trial.failures = 0
        return value >= trial.canary.judge.passes_at

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("an answer could not be judged, or not be kept: %s", error)


def _question(answered: Answered) -> Question:
    """What was asked in a chat."""
    asked = answered.asked
    assert isinstance(asked, Question), "only chats are judged"
    return asked
