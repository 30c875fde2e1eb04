"""Supervised examples: continued pre-training from documents, fine-tuning from conversations, and the order they are seen in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...envs.types import Bool, Int32, Message


@dataclass(frozen=True, slots=True)
class SupervisedExample:
    """One sequence to imitate: token_ids int32 `[N]`, trainable bool `[N]` (never the first: nothing precedes it).

    Example: `SupervisedExample(np.array([1, 7, 2], np.int32), np.array([False, False, True]))`.
    """

    token_ids: Int32
    trainable: Bool

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.trainable), "token_ids and trainable differ in length"


class ChatRenderer(Protocol):
    """The incremental rendering that rollouts use (`burnish.rollout.chat.ChatFormat`): turns are appended, never re-rendered."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of the conversation so far, up to where the assistant's answer begins."""
        ...

    def assistant_ids(self, text: str) -> list[int]:
        """Ids of an answer as the policy samples it, the end-of-turn token included."""
        ...

    def continuation_ids(self, new_messages: Sequence[Message], after_stop: bool) -> list[int]:
        """Ids that lead from an answer (ended by its stop token when `after_stop`) over new messages to the next answer."""
        ...


def cpt_examples(documents: Iterable[Sequence[int]], begin_id: int, end_id: int, chunk_tokens: int) -> list[SupervisedExample]:
    """Continued pre-training: one example per token document, between the model's begin and end tokens; no document sees another.

    A document longer than `chunk_tokens` is cut into chunks that overlap by one token, so that every token is predicted exactly once.
    """
    if chunk_tokens <= 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; a chunk needs at least 2 tokens, one to predict from and one to predict")
    examples = []
    for document in documents:
        ids = np.array([begin_id, *document, end_id], dtype=np.int32)
        for start in range(0, len(ids) - 1, chunk_tokens - 1):
            chunk = ids[start : start + chunk_tokens]
            examples.append(SupervisedExample(chunk, np.arange(len(chunk)) > 0))
    return examples


def sft_example(
    messages: Sequence[Message], chat: ChatRenderer, tools: Sequence[Mapping[str, Any]] = (), max_tokens: int | None = None
) -> SupervisedExample:
    """Supervised fine-tuning: the assistant's answers, their end-of-turn tokens included, are trained; the rest is context.

    Rendered turn by turn as a rollout would, so training and sampling see the same tokens. What follows the last answer is left out.
    Raises ValueError when no assistant message is there or one opens the conversation, when two answers follow each other, when a
    tool call is not written in the text, or when the example is longer than `max_tokens`.
    """
    ids: list[int] = []
    trainable: list[bool] = []
    context: list[Message] = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            context.append(message)
            continue
        if not context:
            raise ValueError(f"message {i} is an assistant's, but no other message precedes it since the last answer")
        if message.tool_calls:
            raise ValueError(f"message {i} carries structured tool calls; write them into its text in the policy's own format")
        given = chat.continuation_ids(context, after_stop=True) if ids else chat.prompt_ids(context, tools)
        answer = chat.assistant_ids(message.text)
        ids += [*given, *answer]
        trainable += [False] * len(given) + [True] * len(answer)
        context = []
    if not ids:
        raise ValueError("the conversation holds no assistant message, so there is nothing to imitate")
    if max_tokens is not None and len(ids) > max_tokens:
        raise ValueError(f"the conversation is {len(ids)} tokens long, more than the {max_tokens} allowed; shorten it or raise the limit")
    return SupervisedExample(np.array(ids, dtype=np.int32), np.array(trainable, dtype=np.bool_))


def shuffled_batch(size: int, batch_size: int, seed: int, position: int) -> NDArray[np.int64]:
    """Indices of batch number `position` (from 0) out of an endless, seeded order, int64 `[batch_size]`.

    Every epoch is a fresh permutation of `size` items, and batches run on across epochs, so each item is seen exactly once per epoch.
    A pure function: a checkpoint needs to hold nothing but `position`.
    """
    if size < 1 or batch_size < 1:
        raise ValueError(f"cannot draw batches of {batch_size} from {size} examples")
    stream = np.arange(position * batch_size, (position + 1) * batch_size)
    return np.array([_permutation(size, seed, epoch)[i] for epoch, i in zip(stream // size, stream % size, strict=True)], dtype=np.int64)


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)
