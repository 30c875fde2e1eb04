"""Failures: what the infrastructure caused, kept apart from what the policy caused.

Running out of turns or tokens, malformed tool calls and giving up are the policy's doing: they are rewarded as the environment
says. A `Failure` is an infrastructure cause; the episode it ends is retried, then masked, and never becomes a reward.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from ..rpc.urls import without_secrets


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

    kind: the cause. culprit: the id or address of the part that failed. detail: one or a few lines for a person. Secrets in URLs are taken
    out of both.

    Example: `Failure(FailureKind.VERIFIER_TIMEOUT, "verdicts@127.0.0.1:50051", "no answer within 5.0 s (2 attempts)")`.
    """

    kind: FailureKind
    culprit: str
    detail: str

    def __post_init__(self) -> None:
        for name in (
            "culprit",
            "detail",
        ):  # failures are stored and shown; an error of somebody's library may quote a URL with its password
            object.__setattr__(self, name, without_secrets(getattr(self, name)))

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
def boundary(kind: FailureKind, culprit: str) -> Iterator[None]:
    """Attribute any exception that escapes user code to `culprit`, as an `EpisodeFailure` with a short traceback.

    An `EpisodeFailure` raised inside keeps its own, more precise attribution. Cancellation passes through untouched.
    """
    try:
        yield
    except EpisodeFailure:
        raise
    except Exception as error:
        raise EpisodeFailure(Failure(kind, culprit, short_traceback(error))) from error


def short_traceback(error: BaseException, frames: int = 2) -> str:
    """The exception and its innermost frames on one line each, for a person reading a transcript."""
    where = traceback.extract_tb(error.__traceback__)[-frames:]
    lines = [f"{type(error).__name__}: {error}"]
    lines += [f"  at {frame.filename}:{frame.lineno} in {frame.name}" for frame in where]
    return "\n".join(lines)
