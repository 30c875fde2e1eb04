"""Episodes as MLflow's traces: what the policy said and what it was answered, span after span, with the seconds that each took."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.envs.failures import Failure
from burnish.envs.types import Episode, Message
from burnish.rollout.store.episodes import text
from burnish.rollout.store.moments import Moment

MOST_TURNS = 100
"""Of an episode that are spans; each is a write or two of the database."""
LONGEST_SAID = 20_000
"""Characters of a text that are kept of it here; the run's folder has all."""

LONGEST_NAME = 1000
"""Characters of an episode's id that are."""


@dataclass(frozen=True, slots=True)
class TracePiece:
    """A part of an episode. kind: of MLflow's types of span. said: the messages that came of it."""

    name: str
    kind: str
    seconds: float
    said: tuple[Message, ...]


def trace_into(uri: str) -> None:
    """Have MLflow write this process's traces into a store, each as it ends: by default it writes them whenever it can, and drops some."""
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    os.environ.setdefault("MLFLOW_TRACE_EXTRACT_ATTACHMENTS", "false")  # what a model wrote stays text
    import mlflow

    mlflow.set_tracking_uri(uri)  # traces have no store of their client's


def log_episode(client: Any, experiment: str, run: str, at: Moment, episode: Episode) -> None:
    """Write a trace of an episode, as one that ends now. client: MLflow's. experiment, run: ids of those that the trace belongs to.

    Raises what MLflow raises of a trace that it has not kept, for which it has no more than a warning as it writes it.
    """
    prompt, pieces = pieces_of(episode)
    lengths = [round(1e9 * piece.seconds) for piece in pieces]
    now = time.time_ns()
    begins = now - sum(lengths)
    place = {"phase": at.phase, "step": str(at.step), "split": at.split, "mode": at.mode, "episode": episode.id[:LONGEST_NAME]}
    root = client.start_trace(
        held(f"{at.phase} {at.step}: {episode.id[:LONGEST_NAME]}"),
        span_type="AGENT",
        inputs={"messages": _messages(prompt)},
        tags=held({f"burnish.{name}": value for name, value in place.items()}),
        experiment_id=experiment,
        start_time_ns=begins,
        run_id=run,
    )
    for piece, length in zip(pieces, lengths, strict=True):
        span = client.start_span(piece.name, root.trace_id, root.span_id, span_type=piece.kind, start_time_ns=begins)
        begins += length
        client.end_span(root.trace_id, span.span_id, outputs={"messages": _messages(piece.said)}, end_time_ns=begins)
    failed = isinstance(episode.outcome, Failure)
    client.end_trace(root.trace_id, outputs=held(outcome_of(episode)), status="ERROR" if failed else "OK", end_time_ns=now)
    client.get_trace(root.trace_id)


def pieces_of(episode: Episode) -> tuple[tuple[Message, ...], list[TracePiece]]:
    """The messages before the policy's first, and what followed: for each turn what it said, and what it was answered if anything."""
    spoke = [i for i, message in enumerate(episode.messages) if message.role == "assistant"]
    spoke = spoke[max(0, len(spoke) - len(episode.turns)) :]
    return episode.messages[: spoke[0] if spoke else None], list(_pieces(episode, spoke))


def _pieces(episode: Episode, spoke: Sequence[int]) -> Iterator[TracePiece]:
    ends = [*spoke[1:], len(episode.messages)]
    for number, (turn, at, end) in enumerate(zip(episode.turns[:MOST_TURNS], spoke, ends, strict=False), start=1):
        yield TracePiece(f"turn {number}", "CHAT_MODEL", turn.generate_s, episode.messages[at : at + 1])
        if turn.env_s or end > at + 1:
            yield TracePiece(f"answer {number}", "TOOL", turn.env_s, episode.messages[at + 1 : end])


def outcome_of(episode: Episode) -> dict[str, Any]:
    """What became of an episode, as plain data."""
    outcome = episode.outcome
    if isinstance(outcome, Failure):
        return {"failure": outcome.kind.value, "culprit": outcome.culprit, "detail": outcome.detail}
    found: dict[str, Any] = {"reward": outcome.total, "parts": dict(outcome.parts), "labels": dict(episode.labels)}
    return found if episode.truncation is None else {**found, "truncation": str(episode.truncation)}


def held(value: Any) -> Any:
    """Data as a database and JSON hold it: text within bounds and in UTF-8, numbers that JSON has no word for as text."""
    if isinstance(value, str):
        return text(value[:LONGEST_SAID]) + ("" if len(value) <= LONGEST_SAID else " …")
    if isinstance(value, Mapping):
        return {held(name): held(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [held(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _messages(said: Sequence[Message]) -> Any:
    return held([message.to_dict() for message in said])
