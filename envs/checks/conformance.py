"""What every conformance suite shares: a check is a function that says what it saw, breaks with a reason, or does not apply.

Each check runs in a thread of its own under a deadline, so that one that hangs is reported and not waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from ..failures import EpisodeFailure, short_traceback

Status = Literal["pass", "fail", "skip", "need"]
"""need: the check needs to be given something to look at, and says what; neither a fault nor a proof that there is none."""
S = TypeVar("S")

HOSTILE_TEXTS = (
    "",
    " \n\t\r\n",
    "\x00\x01\x07\x1b[31m\x7f",
    "\u202eright to left\u200b\ufeff\ufffd",
    "日本語 🎲 e\u0301 \U0010ffff",
    "'; DROP TABLE parts; -- <script> {{x}} %s %n ${x}",
    "f(",
    "f(x=)",
    "[f(1), f(2)",
    "f(**{})",
    "[[[[[[[[" * 500,
    "-" * 20_000 + "1",
    "9" * 20_000,
    "<tool_call>",
    '<tool_call>{"name": 1}</tool_call>',
    "</tool_call><tool_call>" * 500,
    '{"a":' * 5_000,
    "1e999 NaN -Infinity",
    "a " * 500_000,
    " " * 500_000,
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. Example: `Check("determinism", "pass", "3 seeds, 24 steps")`."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the checks of one subject found; latencies are milliseconds, for information.

    Example: `Report("my-team/Riddles-v0", (Check("five-tuple", "pass", "…"),), {"reset p50": 0.1}).passed` is True.
    """

    subject: str
    checks: tuple[Check, ...]
    latency_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a fault was found."""
        return any(check.status == "fail" for check in self.checks)

    @property
    def passed(self) -> bool:
        """Whether there is no fault, as far as checks apply, and every check had what it needs to look at."""
        return all(check.status in ("pass", "skip") for check in self.checks)

    @property
    def verdict(self) -> str:
        """Example: "needs a sample"."""
        return "FAILED" if self.failed else "passed" if self.passed else "needs a sample"

    def to_row(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "latency_ms": dict(self.latency_ms), "failed": self.failed, "passed": self.passed}


class Broken(Exception):
    """The subject breaks what a check asks; the text says how."""


class Skipped(Exception):
    """The check does not apply; the text says why."""


class NeedsSample(Exception):
    """Made-up input does not suit the subject, which may be no fault of it; the text says what to give."""


def no_difference(values: Sequence[float]) -> list[str]:
    """A line to look at where everything was worth the same: right for some episodes, and for others a reward that teaches nothing."""
    if len(values) < 2 or len(set(values)) > 1:
        return []
    cure = "give episodes that should differ: --sample FILE.jsonl"
    return [f"all the same, {values[0] + 0.0:g}: a reward that never differs teaches nothing; {cure}"]


def run_checks(checks: Mapping[str, Callable[[S], str]], subject: S, deadline_s: float, waits: str) -> tuple[Check, ...]:
    """Every check by its title. waits: what to suspect when one does not end within `deadline_s` seconds."""
    return tuple(_run(check, title, subject, deadline_s, waits) for title, check in checks.items())


def _run(check: Callable[[S], str], title: str, subject: S, deadline_s: float, waits: str) -> Check:
    found: list[Check] = []

    def work() -> None:
        try:
            found.append(Check(title, "pass", check(subject)))
        except Skipped as reason:
            found.append(Check(title, "skip", str(reason)))
        except NeedsSample as reason:
            found.append(Check(title, "need", str(reason)))
        except Broken as reason:
            found.append(Check(title, "fail", str(reason)))
        except EpisodeFailure as error:  # what broke its contract says all in its text
            found.append(Check(title, "fail", error.failure.detail))
        except BaseException as error:  # a sys.exit would end this thread and say nothing
            found.append(Check(title, "fail", short_traceback(error)))

    thread = threading.Thread(target=work, name=f"check {title}", daemon=True)
    thread.start()
    thread.join(deadline_s)
    return found[0] if found else Check(title, "fail", f"no end after {deadline_s:g} s; {waits}")


def percentiles(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`{"step": [0.001, …]}` as milliseconds: `{"step p50": 1.0, "step p95": …, "step p99": …}`."""
    return {f"{name} p{q}": 1e3 * float(np.percentile(times, q)) for name, times in seconds.items() if times for q in (50, 95, 99)}


def render(report: Report) -> str:
    """The report as text for a terminal. What several checks found is said once, by the first of them, which names the others."""
    width = max(len(check.name) for check in report.checks)
    marks = {"pass": "ok  ", "fail": "FAIL", "skip": "skip", "need": "need"}
    lines = [f"{report.subject}: {report.verdict}"]
    for check, others in _together(report.checks):
        first, *rest = check.detail.splitlines() or [""]
        if others:
            rest.append(f"the same in {len(others)} more: {', '.join(others)}")
        lines += [f"  {marks[check.status]}  {check.name:<{width}}  {first}".rstrip(), *(f"{'':{width + 10}}{line}" for line in rest)]
    if report.latency_ms:
        lines.append("  latency in ms: " + ", ".join(f"{name} {value:.3f}" for name, value in report.latency_ms.items()))
    return "\n".join(lines)


def _together(checks: Sequence[Check]) -> list[tuple[Check, list[str]]]:
    """Each check with the names of the later ones that found the same: of the same status, and their text holds its first line."""
    found: list[tuple[Check, list[str]]] = []
    for check in checks:
        same = (others for one, others in found if check.status == one.status != "pass" and one.detail.partition("\n")[0] in check.detail)
        others = next(same, None) if check.detail else None
        if others is not None:
            others.append(check.name)
        else:
            found.append((check, []))
    return found
