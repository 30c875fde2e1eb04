"""Documents and conversations become examples in which every token that should be learned is learned once."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as Sequence_
from transformers import PreTrainedTokenizerFast

from burnish.envs.types import Message
from burnish.trainer.data.examples import ExampleMaker
from burnish.trainer.data.forms import Document, Preference
from burnish.trainer.data.pairs import pair_examples
from burnish.trainer.data.sources import Reject, Source
from burnish.trainer.data.supervised import SupervisedExample, cpt_examples, sft_examples, shuffled_batch
from burnish.trainer.evaluation.suites.measure import _pieces

pytestmark = pytest.mark.unit


class LetterRenderer:
    """One id per character: `(` opens a message, `)` ends one, `>` asks for an answer, `t` stands for a tool. `forgetful` leaves out the
    answers of earlier turns. `knows` what certainly does not fit. `rendered`: messages so far."""

    append_only = True
    stop_token_ids = (ord(")"),)

    def __init__(self, forgetful: bool = False, knows: bool = True) -> None:
        self.forgetful, self.knows, self.rendered = forgetful, knows, 0

    def fits(self, text: str, tokens: int) -> bool:
        return not self.knows or len(text) <= 2 * tokens

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        self.rendered += len(messages)
        kept = [m for m in messages if not (self.forgetful and m.role == "assistant")]
        return "t" * len(tools) + "".join(f">{m.text})" if m.role == "assistant" else f"({m.text})" for m in kept) + ">"

    def answered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        return f"{self.prompt(messages[:-1], tools)}{messages[-1].text})"

    def encode_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
        return np.array([ord(c) for c in text], np.int32), np.array([any(a <= i < b for a, b in spans) for i in range(len(text))])


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


WORDS = {"x": 0, "<|endoftext|>": 1, "<pad>": 2, "<|im_end|>": 3, "<": 4, "|": 5, "im": 6, "_": 7, "end": 8, ">": 9}


def split_tokenizer() -> PreTrainedTokenizerFast:
    """Its pad token is not its end of text, and neither is what ends a turn. A control token that is broken up is six others."""
    words = Tokenizer(WordLevel(WORDS, unk_token="x"))
    words.pre_tokenizer = Sequence_([WhitespaceSplit(), Punctuation("isolated")])
    words.add_special_tokens(["<|endoftext|>", "<pad>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", pad_token="<pad>")


def test_a_document_stands_between_the_models_own_tokens_and_holds_no_control_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.trainer.data.examples.load_tokenizer", lambda model: split_tokenizer())
    source = Source("own", Fraction(1), "here", lambda: iter([Document("x <|im_end|> x", "a.txt:1")]))
    (made,) = ExampleMaker("cpt", Path("m"), 64, {}).of(source)
    assert not isinstance(made, Reject)
    examples, where = made
    assert where == "a.txt:1"
    assert [one.token_ids.tolist() for one in examples] == [[1, 0, 4, 5, 6, 7, 8, 5, 9, 0, 1]]  # x < | im _ end | > x
    assert examples[0].trainable.tolist() == [False, *[True] * 10]


def test_a_text_that_is_measured_is_framed_and_broken_up_as_one_that_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.rollout.tokenizer.load_tokenizer", lambda model: split_tokenizer())
    suite = SimpleNamespace(id="mine", texts=lambda count: [Document("x <|im_end|> x")][:count])
    asking = SimpleNamespace(count=lambda suite: 1)
    (pieces,) = _pieces(cast(Any, suite), cast(Any, asking), Path("m"), 64)
    assert [ids.tolist() for ids in pieces] == [[1, 0, 4, 5, 6, 7, 8, 5, 9, 0]]


def letters(forgetful: bool = False) -> Any:
    return LetterRenderer(forgetful)  # what examples are made with, and no more of a renderer


def shown(example: SupervisedExample) -> tuple[str, str]:
    return "".join(map(chr, example.token_ids)), "".join(map(chr, example.token_ids[example.trainable]))


TALK = [Message("user", "a"), Message("assistant", "x"), Message("tool", "b"), Message("assistant", "y"), Message("tool", "c")]


def test_a_conversation_trains_answers_with_their_end_of_turn_and_nothing_else() -> None:
    (example,) = sft_examples(TALK, letters(), tools=({"name": "t"},))
    assert shown(example) == ("t(a)>x)(b)>y)", "x)y)")


def test_a_template_that_rewrites_earlier_turns_gives_an_example_for_each_answer() -> None:
    first, second = sft_examples(TALK, letters(forgetful=True))
    assert (shown(first), shown(second)) == (("(a)>x)", "x)"), ("(a)(b)>y)", "y)"))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([Message("user", "a")], "no assistant message"),
        ([Message("assistant", "x")], "no other message precedes"),
        ([Message("user", "a"), Message("assistant", "x"), Message("assistant", "y")], "message 2 is an assistant's"),
        ([Message("user", "a" * 50), Message("assistant", "x")], "more than the 20 tokens allowed"),
        ([Message("user", "a" * 25), Message("assistant", "x")], "30 tokens long"),
    ],
)
def test_conversations_that_cannot_be_imitated_are_refused(messages: list[Message], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sft_examples(messages, letters(), max_tokens=20)


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("forgetful", [True, False])
def test_a_conversation_that_is_far_too_long_is_refused_before_each_answer_is_rendered(knows: bool, forgetful: bool) -> None:
    talk, renderer = [Message("user", "a"), Message("assistant", "x")] * 1000, LetterRenderer(forgetful, knows)
    with pytest.raises(ValueError, match="allowed; shorten it"):
        sft_examples(talk, cast(Any, renderer), max_tokens=100)
    assert renderer.rendered <= 2 * len(talk)
    with pytest.raises(ValueError, match="allowed; shorten it"):
        pair_examples(Preference(tuple(talk[:1]), tuple(talk[1:]), tuple(talk[1:])), cast(Any, renderer), 100)
    assert renderer.rendered <= 4 * len(talk)


def test_batches_visit_every_example_once_per_epoch_in_a_fresh_seeded_order() -> None:
    stream = np.concatenate([shuffled_batch(10, 4, seed=1, position=p) for p in range(5)])
    first, second = stream[:10].tolist(), stream[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert shuffled_batch(10, 4, 1, 3).tolist() == stream[12:16].tolist()
    assert shuffled_batch(10, 4, 2, 0).tolist() != stream[:4].tolist()
