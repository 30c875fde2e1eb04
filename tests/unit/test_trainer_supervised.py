"""Documents and conversations become examples in which every token that should be learned is learned once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from burnish.envs.types import Message, ToolCall
from burnish.trainer.data.supervised import cpt_examples, sft_example, shuffled_batch

pytestmark = pytest.mark.unit

TURN_END = 99


class LetterChat:
    """One id per character; an answer ends with 99, each message is framed by 1 and an answer is opened by 2."""

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        return [0] * len(tools) + self.continuation_ids(messages, after_stop=False)

    def assistant_ids(self, text: str) -> list[int]:
        return [*map(ord, text), TURN_END]

    def continuation_ids(self, new_messages: Sequence[Message], after_stop: bool) -> list[int]:
        return [*([3] if after_stop else []), *(i for m in new_messages for i in (1, *map(ord, m.text))), 2]


def test_each_document_is_an_example_of_its_own_with_every_token_predicted() -> None:
    examples = cpt_examples([[1, 2, 3], [4, 5]], begin_id=8, end_id=0, chunk_tokens=8)
    assert [example.token_ids.tolist() for example in examples] == [[8, 1, 2, 3, 0], [8, 4, 5, 0]]
    predicted = [token for example in examples for token in example.token_ids[example.trainable].tolist()]
    assert predicted == [1, 2, 3, 0, 4, 5, 0]


def test_a_long_document_is_cut_so_that_each_token_is_predicted_once() -> None:
    assert [e.token_ids.tolist() for e in cpt_examples([[1, 2, 3, 4]], 8, 0, 4)] == [[8, 1, 2, 3], [3, 4, 0]]
    assert [e.token_ids.tolist() for e in cpt_examples([[1, 2]], 8, 0, 4)] == [[8, 1, 2, 0]]
    assert cpt_examples([], 8, 0, 4) == []
    with pytest.raises(ValueError, match="at least 2"):
        cpt_examples([[1]], 8, 0, 1)


def test_a_conversation_trains_answers_with_their_end_of_turn_and_nothing_else() -> None:
    messages = [Message("user", "a"), Message("assistant", "x"), Message("tool", "b"), Message("assistant", "y"), Message("tool", "c")]
    example = sft_example(messages, LetterChat(), tools=({"name": "t"},))
    a, b, x, y = map(ord, "abxy")
    assert example.token_ids.tolist() == [0, 1, a, 2, x, TURN_END, 3, 1, b, 2, y, TURN_END]
    assert example.token_ids[example.trainable].tolist() == [x, TURN_END, y, TURN_END]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([Message("user", "a")], "no assistant message"),
        ([Message("assistant", "x")], "no other message precedes"),
        ([Message("user", "a"), Message("assistant", "x"), Message("assistant", "y")], "message 2 is an assistant's"),
        ([Message("user", "a"), Message("assistant", "", (ToolCall("0", "t"),))], "structured tool calls"),
        ([Message("user", "a" * 50), Message("assistant", "x")], "54 tokens long"),
    ],
)
def test_conversations_that_cannot_be_imitated_are_refused(messages: list[Message], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sft_example(messages, LetterChat(), max_tokens=20)


def test_batches_visit_every_example_once_per_epoch_in_a_fresh_seeded_order() -> None:
    stream = np.concatenate([shuffled_batch(10, 4, seed=1, position=p) for p in range(5)])
    first, second = stream[:10].tolist(), stream[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert shuffled_batch(10, 4, 1, 3).tolist() == stream[12:16].tolist()
    assert shuffled_batch(10, 4, 2, 0).tolist() != stream[:4].tolist()
