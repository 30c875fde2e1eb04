"""Failures: what the infrastructure caused, kept apart from what the policy caused.

Running out of turns or tokens, malformed tool calls and giving up are the policy's doing: they are rewarded as the environment
says. A `Failure` is an infrastructure cause; the episode it ends is retried, then masked, and never becomes a reward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ..rpc.urls import without_secrets
from ..rpc.user_code import is_asked_for, message_of
from .places import places_of
from .printable import printable

MAX_DETAIL = 2000
"""Characters of a failure: an exception may quote all that its code was given, and a failure is stored with every episode."""
MAX_SAID = 1000
"""Of those, what an exception may say: the places it came from are worth as much."""
_AFTER_URL = re.compile(r"[\s\"'<>]")
"""What ends a URL in a text."""


class FailureKind(StrEnum):
    """Infrastructure causes that end an episode."""

    ENV_ERROR = "env_error"
    ENV_TIMEOUT = "env_timeout"
    TOOL_ERROR = "tool_error"
    TOOL_TIMEOUT = "tool_timeout"
    REWARD_ERROR = "reward_error"
    REWARD_TIMEOUT = "reward_timeout"
    REWARD_INVALID = "reward_invalid"
    VERIFIER_UNAVAILABLE = "verifier_unavailable"
    VERIFIER_ERROR = "verifier_error"
    VERIFIER_TIMEOUT = "verifier_timeout"
    VERIFIER_INVALID = "verifier_invalid"
    ENGINE_ERROR = "engine_error"
    ENGINE_LOST = "engine_lost"
    ENGINE_TIMEOUT = "engine_timeout"
    CANCELLED = "cancelled"

    @property
    def is_scoring(self) -> bool:
        """The conversation was whole and only its scoring failed: scoring it again may help, playing it again does not."""
        return self.value.startswith(("reward_", "verifier_"))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an episode has no reward.

    kind: the cause. culprit: the id or address of the part that failed. detail: one or a few lines for a person. Both are made `fit`:
    secrets in URLs are taken out, control characters shown as escapes, and what is beyond `MAX_DETAIL` characters is left out.

    Example: `Failure(FailureKind.VERIFIER_TIMEOUT, "verdicts@127.0.0.1:50051", "no answer within 5.0 s (2 attempts)")`.
    """

    kind: FailureKind
    culprit: str
    detail: str

    def __post_init__(self) -> None:  # failures are stored and shown; an error of somebody's library may quote anything
        object.__setattr__(self, "culprit", fit(self.culprit))
        object.__setattr__(self, "detail", fit(self.detail))

    def __str__(self) -> str:
        return f"{self.kind} in {self.culprit}: {self.detail}"

    @property
    def line(self) -> str:
        """The failure on one line, without the places that follow. Example: `env_error in my/Env-v0: RuntimeError: the gauge broke`."""
        return str(self).partition("\n")[0]


class EpisodeFailure(Exception):
    """Carries a `Failure` up to the rollout, which retries or masks the episode."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    def __reduce__(self) -> tuple[type[EpisodeFailure], tuple[Failure]]:
        return type(self), (self.failure,)


@contextmanager
def boundary(kind: FailureKind, culprit: str, *passing: type[Exception]) -> Iterator[None]:
    """Attribute whatever escapes sync user code to `culprit`, as an `EpisodeFailure` with a short traceback.

    An `EpisodeFailure` raised inside keeps its own, more precise attribution, and those `passing` are let through. So is Ctrl-C, and a
    cancellation that was asked for; any other, and a `sys.exit`, would end the event loop that waits for the code, or hold it for ever.
    """
    try:
        yield
    except EpisodeFailure:
        raise
    except passing:
        raise
    except BaseException as error:
        if is_asked_for(error) and not isinstance(error, GeneratorExit):  # here nothing waits that could be closed
            raise
        raise EpisodeFailure(Failure(kind, culprit, short_traceback(error))) from error


def short_traceback(error: BaseException, frames: int = 2) -> str:
    """The exception and where in the user's code it came from, as `places_of` says, a line each: for a person reading a transcript."""
    return "\n".join([f"{type(error).__name__}: {said_by(error)}", *places_of(error, frames)])


def said_by(error: BaseException) -> str:
    """The message of an exception, made `fit`, and short."""
    return fit(message_of(error), MAX_SAID)


def shown(value: object, limit: int = 80) -> str:
    """The beginning of a value's `repr`, which is somebody's code too. Example: `shown("a" * 100, 4)` is `"'aa…"`."""
    try:
        return fit(repr(value), limit)
    except BaseException as error:
        if is_asked_for(error):
            raise
        return f"a {type(value).__name__} (its repr cannot be read: {type(error).__name__})"


def fit(text: str, limit: int = MAX_DETAIL) -> str:
    """Text that may be stored and shown: no secrets in its URLs, control characters as escapes, at most `limit` characters.

    Example: `fit("no\x1b[0m answer", 8)` is `"no\\x1b[…"`.
    """
    if len(text) > 2 * limit:
        text = _without_cut_url(text[: 2 * limit])
    text = printable(without_secrets(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_cut_url(text: str) -> str:
    """A text that was cut, which may be inside a URL: that shows no more what of it is secret."""
    last = max((end.end() for end in _AFTER_URL.finditer(text)), default=0)
    at = text.find("://", last)
    return text if at < 0 else f"{text[:at]}://…"
