"""Supervised examples: continued pre-training from documents, fine-tuning from conversations, and the order they are seen in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...envs.types import Bool, Int32, Message
from ...rollout.renderers import Renderer

MANY_ANSWERS: Final = 16
"""Of one conversation. Each is rendered with all that stands before it, so whether so many fit is told before that."""


@dataclass(frozen=True, slots=True)
class SupervisedExample:
    """One sequence to imitate: token_ids int32 `[N]`, trainable bool `[N]` (never the first: nothing precedes it).

    Example: `SupervisedExample(np.array([1, 7, 2], np.int32), np.array([False, False, True]))`.
    """

    token_ids: Int32
    trainable: Bool

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.trainable), "token_ids and trainable differ in length"


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


def sft_examples(
    messages: Sequence[Message], renderer: Renderer, tools: Sequence[Mapping[str, Any]] = (), max_tokens: int | None = None
) -> list[SupervisedExample]:
    """Supervised fine-tuning: the assistant's answers, their ends of turn included, are trained; the rest is context.

    One example, whose tokens are those of the conversation rendered whole, up to its last answer. Under a template that rewrites earlier
    turns it is one example for each stretch that it leaves as it is: an answer is trained as the policy will give it, after a history as
    the policy will see it. What follows the last answer is left out.

    Raises ValueError when no assistant message is there or one opens the conversation, when two answers follow each other, when the
    template refuses the conversation, or when an example is longer than `max_tokens`.
    """
    stretches: list[tuple[str, list[tuple[int, int]]]] = []
    for asked, answered in rendered_answers(messages, renderer, tools, max_tokens):
        spans = stretches.pop()[1] if stretches and asked.startswith(stretches[-1][0]) else []
        spans.append((len(asked), len(answered)))
        stretches.append((answered, spans))
    if not stretches:
        raise ValueError("the conversation holds no assistant message, so there is nothing to imitate")
    examples = [SupervisedExample(*renderer.encode_spans(text, spans)) for text, spans in stretches]
    _check_length(max(len(example.token_ids) for example in examples), max_tokens)
    return examples


def rendered_answers(
    messages: Sequence[Message], renderer: Renderer, tools: Sequence[Mapping[str, Any]], max_tokens: int | None, start: int = 0
) -> Iterator[tuple[str, str]]:
    """For each answer from message `start` on, the conversation as text up to where the answer begins, and up to its end.

    Raises ValueError when an answer follows no other message, when the template refuses the conversation, or, before all of it is rendered,
    when it certainly takes more than `max_tokens`.
    """
    answers = [i for i in range(start, len(messages)) if messages[i].role == "assistant"]
    for i in answers:
        if i == 0 or messages[i - 1].role == "assistant":
            raise ValueError(f"message {i} is an assistant's, but no other message precedes it since the last answer")
    if len(answers) > MANY_ANSWERS:
        _check_fits(renderer.answered(messages[: answers[-1] + 1], tools), renderer, max_tokens, counted=True)
    for i in answers:
        asked, answered = renderer.prompt(messages[:i], tools), renderer.answered(messages[: i + 1], tools)
        _check_fits(answered, renderer, max_tokens)
        yield asked, answered


def _check_fits(text: str, renderer: Renderer, max_tokens: int | None, counted: bool = False) -> None:
    """Raise ValueError for a text that is certainly too long. counted: for any that is."""
    if max_tokens is None:
        return
    if not renderer.fits(text, max_tokens):
        raise ValueError(f"the conversation takes more than the {max_tokens} tokens allowed; shorten it or raise the limit")
    if counted:
        _check_length(len(renderer.encode(text)), max_tokens)


def _check_length(tokens: int, max_tokens: int | None) -> None:
    if max_tokens is not None and tokens > max_tokens:
        raise ValueError(f"the conversation is {tokens} tokens long, more than the {max_tokens} allowed; shorten it or raise the limit")


def wholly_trained(example: SupervisedExample) -> SupervisedExample:
    """The same tokens, each of them trained but the first: a conversation read as a document."""
    return SupervisedExample(example.token_ids, np.arange(len(example.token_ids)) > 0)


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
