"""What is kept of every request: a line of the audit log and counters, and nothing of what was said unless it is asked for."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from ..guardrails.tool_calls import CallDecision
from ..guardrails.types import Decision

RECORD: Final = "burnish.record"
BROKEN_OFF: Final = 499
"""The status of a request whose client was gone before an answer began."""
Outcome = Literal["same", "different", "unanswered", "failed", "dropped"]
"""Of a copy: the texts are equal or not; the caller's own request had no whole answer; the copy had none; there were too many."""
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(slots=True)
class Record:
    """One request as it is counted and logged.

    id: what its answer carries. key: the name of its key. model: the one that is asked for, once it is known to be one; version: the one
    that answers. refused: why it was not answered (`admission.Reason`). Tokens are those that the model read and wrote, whatever of them
    went out. asked: the messages or the prompt, kept only where a log is to hold them. read: the request as the model read it, and its
    bytes. below: of each choice, by its index, the warnings that the policy adds below what the model wrote. store: whether the client
    wants its answer kept, None where it says nothing.
    """

    route: str = ""
    id: str = ""
    key: str = ""
    model: str = ""
    version: str = ""
    status: int = BROKEN_OFF
    refused: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    decisions: list[Decision | CallDecision] = field(default_factory=list)
    asked: Any = None
    read: Any = None
    read_bytes: int = 0
    below: dict[int, str] = field(default_factory=dict)
    store: bool | None = None
    started: float = field(default_factory=time.monotonic)
    first_s: float | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def has_begun(self) -> None:
        """Note that the first of the answer is there."""
        if self.first_s is None:
            self.first_s = time.monotonic() - self.started


@dataclass(frozen=True, slots=True)
class Compared:
    """A request that was copied, and both answers' texts. record: of the request itself. version: the one that got the copy."""

    record: Record
    version: str
    outcome: Outcome
    status: int = 0
    seconds: float = 0.0
    own_seconds: float = 0.0
    own: list[str] | None = None
    copy: list[str] | None = None


def record_of(scope: Scope) -> Record:
    """The record of a request under way; one that nobody reads where none is kept."""
    found = scope.get(RECORD)
    return found if isinstance(found, Record) else Record()


class Audit:
    """Appends a line of JSON for every request whose caller is known.

    file: None keeps no log. prompts: whether the messages and prompts are in it. Raises ValueError when the file cannot be written. One
    write per line, so that lines stay whole.
    """

    def __init__(self, file: str | Path | None = None, prompts: bool = False) -> None:
        self.prompts = prompts and bool(file)
        self._file: int | None = None
        if file:
            try:
                self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise ValueError(f"audit log {file} cannot be written: {error.strerror}") from None

    def note(self, record: Record) -> None:
        """Append the line of a request that has ended."""
        row: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": record.id,
            "key": record.key,
            "route": record.route,
            "model": record.model,
            **({"version": record.version} if record.version else {}),
            "status": record.status,
            **({"refused": record.refused} if record.refused else {}),
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "seconds": round(time.monotonic() - record.started, 4),
            **({"first_s": round(record.first_s, 4)} if record.first_s is not None else {}),
            "decisions": [decision.to_row(evidence=False) for decision in record.decisions],
            **self._asked(record),
        }
        self._append(row)

    def note_shadow(self, compared: Compared) -> None:
        """Append the line of a copied request, with both answers where prompts are kept."""
        record = compared.record
        row: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": record.id,
            "key": record.key,
            "route": "shadow",
            "model": record.model,
            "version": compared.version,
            "of": record.version,
            "outcome": compared.outcome,
            "status": compared.status,
            "seconds": round(compared.seconds, 4),
            "of_seconds": round(compared.own_seconds, 4),
        }
        if self.prompts and record.store is not False:
            row |= {**self._asked(record), "answers": compared.copy, "of_answers": compared.own}
        self._append(row)

    def _asked(self, record: Record) -> dict[str, Any]:
        return {"prompt" if record.route == "completions" else "messages": record.asked} if self.prompts else {}

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            os.write(self._file, f"{json.dumps(row)}\n".encode())  # escapes: half a character is no UTF-8


class Metrics:
    """Counters for Prometheus. Their labels are names that this service was configured with, never a client's words."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of = self._registry
        self._requests = Counter("burnish_requests", "Requests that have ended.", ("key", "route", "model", "status"), registry=of)
        self._refused = Counter("burnish_refused", "Requests that were refused.", ("key", "reason"), registry=of)
        self._tokens = Counter("burnish_tokens", "Tokens that the model read and wrote.", ("key", "model", "kind"), registry=of)
        self._decisions = Counter("burnish_policy_decisions", "What the policy did.", ("key", "where", "action"), registry=of)
        self._under_way = Gauge("burnish_requests_under_way", "Requests under way.", ("key",), registry=of)
        self._shadows = Counter("burnish_shadows", "Copies of requests.", ("model", "version", "outcome"), registry=of)
        self._seconds = Histogram("burnish_request_seconds", "Time of whole answers.", ("model",), buckets=SECONDS, registry=of)
        self._feedback = Counter("burnish_feedback", "What there was in feedback.", ("key", "kind"), registry=of)
        self._judged = Counter("burnish_judged", "Answers of which a judge was asked.", ("version", "verdict"), registry=of)
        self._unkept = Counter("burnish_answers_unkept", "Answers that could not wait for feedback.", ("reason",), registry=of)
        self._first = Histogram("burnish_first_token_seconds", "Time to the first of an answer.", ("model",), buckets=SECONDS, registry=of)

    def began(self, record: Record) -> None:
        self._under_way.labels(record.key).inc()

    def ended(self, record: Record, seconds: float, began: bool) -> None:
        """began: whether `began` was called."""
        if began:
            self._under_way.labels(record.key).dec()
        self._requests.labels(record.key, record.route, record.model, str(record.status)).inc()
        if record.refused:
            self._refused.labels(record.key, record.refused).inc()
        for kind, tokens in (("prompt", record.prompt_tokens), ("completion", record.completion_tokens)):
            if tokens:
                self._tokens.labels(record.key, record.model, kind).inc(tokens)
        for decision in record.decisions:
            self._decisions.labels(record.key, decision.where, decision.action).inc()
        if record.tokens:
            self._seconds.labels(record.model).observe(seconds)
        if record.first_s is not None:
            self._first.labels(record.model).observe(record.first_s)

    def feedback(self, key: str, kind: str) -> None:
        """Feedback was stored. kind: up, down, correction or verdict."""
        self._feedback.labels(key, kind).inc()

    def unkept(self, reason: str) -> None:
        """An answer could not be kept until feedback comes."""
        self._unkept.labels(reason).inc()

    def shadowed(self, compared: Compared) -> None:
        self._shadows.labels(compared.record.model, compared.version, compared.outcome).inc()

    def judged(self, version: str, verdict: str) -> None:
        """A judge was asked of an answer. verdict: passed, failed or outage."""
        self._judged.labels(version, verdict).inc()

    def page(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)


class Books:
    """The audit log and the counters of a service."""

    def __init__(self, audit: Audit | None = None) -> None:
        self.audit, self.metrics = audit or Audit(), Metrics()

    def began(self, record: Record) -> None:
        """A request whose caller is known, and let in."""
        self.metrics.began(record)

    def shadowed(self, compared: Compared) -> None:
        """A copy of a request has been answered, or has not."""
        self.metrics.shadowed(compared)
        self.audit.note_shadow(compared)

    def ended(self, record: Record, known: bool, began: bool) -> None:
        """A request has ended. known: whether its caller is; of others there is a count and no line, so that they cannot fill a disk."""
        self.metrics.ended(record, time.monotonic() - record.started, began)
        if known:
            self.audit.note(record)
