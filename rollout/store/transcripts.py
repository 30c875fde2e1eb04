"""Transcripts: what was said in each episode, what came of it and what it took, one line of JSON each.

They are how a person reads an episode, and what is kept of one until its Parquet file is written (`episodes`); `recorded` reads both.

Messages hold the model's text as it is, whatever it contains: whoever displays it escapes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...envs.failures import Failure, FailureKind
from ...envs.pydantic_words import first_error
from ...envs.types import Episode, Message, Reward, StopReason, Truncation, Turn, message_from_dict
from .json_lines import JsonLines, read_json_lines
from .own_files import own_files
from .records import Mode

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class StoredReward(_Stored):
    """The total that trained, and every part unweighted. turns: part -> its value for each turn, where it was judged turn by turn."""

    total: Finite
    parts: dict[str, Finite]
    turns: dict[str, tuple[Finite, ...]] | None = None


class StoredFailure(_Stored):
    """The infrastructure cause that ended the episode."""

    kind: FailureKind
    culprit: str
    detail: str


class StoredTurn(_Stored):
    """One call of the engine: sampled tokens, why it stopped, seconds in the engine and in the environment's answer, and the oldest and
    newest weight version that sampled it."""

    tokens: Count
    stop_reason: StopReason
    generate_s: Finite
    env_s: Finite
    oldest_version: int
    newest_version: int


class Transcript(_Stored):
    """One episode as stored. A row has the lowest schema that can hold it: 3 when its prompt describes tools, 2 when its reward has values
    per turn, else 1.

    run: name of the run folder. phase, step: where in the run. split: "train", or "heldout" for an evaluation; mode: how it sampled.
    episode: task id and sample, "train-17/0". seed: the task's. Exactly one of reward and failure is set.
    messages: OpenAI chat messages. tools: OpenAI function schemas that the prompt describes. trainable_tokens: sampled tokens over all
    turns; context_tokens: tokens of all trajectories.
    """

    schema_version: Literal[1, 2, 3] = Field(default=1, alias="schema")
    run: str
    phase: str
    step: Count
    split: Literal["train", "heldout"]
    mode: Mode
    episode: str
    task: str
    seed: int
    sample: Count
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None = None
    reward: StoredReward | None = None
    failure: StoredFailure | None = None
    truncation: Truncation | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Finite] = Field(default_factory=dict)
    turns: tuple[StoredTurn, ...] = ()
    trainable_tokens: Count
    context_tokens: Count

    @field_validator("messages")
    @classmethod
    def _are_messages(cls, messages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for i, message in enumerate(messages):
            message_from_dict(message, f"message {i}")
        return messages

    @model_validator(mode="after")
    def _one_outcome(self) -> Self:
        if (self.reward is None) == (self.failure is None):
            raise ValueError("an episode has either a reward or a failure")
        if self.tools and self.schema_version < 3:
            raise ValueError("tools belong to schema 3")
        per_turn = self.reward.turns or {} if self.reward else {}
        if per_turn and self.schema_version == 1:
            raise ValueError("reward.turns belongs to schema 2")
        for name, values in per_turn.items():
            if len(values) != len(self.turns):
                raise ValueError(f"reward.turns.{name} has {len(values)} values, the episode has {len(self.turns)} turns")
        return self

    @property
    def chat(self) -> tuple[Message, ...]:
        """The messages as burnish's type."""
        return tuple(message_from_dict(message) for message in self.messages)

    def to_row(self) -> dict[str, Any]:
        """As plain JSON."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


def transcript_of(
    episode: Episode, *, run: str, phase: str, step: int, split: Literal["train", "heldout"] = "train", mode: Mode = "sampled"
) -> Transcript:
    """What is stored of an episode. Raises ValueError when a metric is not finite."""
    failed, reward = episode.outcome, episode.reward
    try:
        return Transcript(
            schema=3 if episode.tools else 2 if reward and reward.turns else 1,
            run=run,
            phase=phase,
            step=step,
            split=split,
            mode=mode,
            episode=episode.id,
            task=episode.task.id,
            seed=episode.task.seed,
            sample=episode.sample,
            messages=tuple(message.to_dict() for message in episode.messages),
            tools=tuple(dict(tool) for tool in episode.tools) or None,
            reward=_stored_reward(reward) if reward else None,
            failure=StoredFailure(kind=failed.kind, culprit=failed.culprit, detail=failed.detail) if isinstance(failed, Failure) else None,
            truncation=episode.truncation,
            labels=dict(episode.labels),
            metrics=_floats(episode.metrics),
            turns=tuple(_stored_turn(turn) for turn in episode.turns),
            trainable_tokens=sum(int(trajectory.trainable.sum()) for trajectory in episode.trajectories),
            context_tokens=sum(len(trajectory) for trajectory in episode.trajectories),
        )
    except ValidationError as error:
        raise ValueError(f"episode {episode.id} cannot be stored: {first_error(error)}") from error


def _stored_reward(reward: Reward) -> StoredReward:
    turns = {name: tuple(float(value) for value in values) for name, values in reward.turns.items()}
    return StoredReward(total=float(reward.total), parts=_floats(reward.parts), turns=turns or None)


def _floats(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items()}


def _stored_turn(turn: Turn) -> StoredTurn:
    versions = turn.policy_version
    return StoredTurn(
        tokens=len(turn.token_ids),
        stop_reason=turn.stop_reason,
        generate_s=float(turn.generate_s),
        env_s=float(turn.env_s),
        oldest_version=int(versions.min()) if len(versions) else -1,
        newest_version=int(versions.max()) if len(versions) else -1,
    )


class TranscriptWriter:
    """Appends transcripts to one file.

    Example: `with TranscriptWriter(run / "transcripts" / "rft.000012.train.sampled.jsonl") as writer: writer.write(transcript)`.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def write(self, transcript: Transcript) -> None:
        """Append one line. Raises OSError when it cannot be written whole, TypeError when a tool argument is nothing JSON can hold."""
        self._lines.append(transcript.to_row())

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_transcripts(path: Path) -> Iterator[Transcript]:
    """The transcripts of a file, or of all *.jsonl files of a folder in order of name, one at a time.

    Raises ValueError with file and line on a row that is no transcript, and naming a file of the folder that is not its own.
    """
    for file in own_files(path.parent, "*.jsonl", path.name) if path.is_dir() else [path]:
        for where, row in read_json_lines(file):
            try:
                yield Transcript.model_validate(row)
            except ValidationError as error:
                raise ValueError(f"{where}: {first_error(error)}") from error
