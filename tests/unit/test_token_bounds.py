"""How many tokens a text has at the least: never more than it has, whatever the tokenizer leaves out on the way."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.chat_templates import FAMILIES, family_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from burnish.rollout.renderers import TemplateRenderer
from burnish.rollout.token_bounds import TokenBound, token_bound

pytestmark = pytest.mark.unit

TEXTS = ["the cat sat on the mat", "über  allen Gipfeln", "\u1f82\u1f82 1 + 1 = 2"] * 5
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


def trained(model: Any, trainer: Any, normalizer: Any = None, split: Any = None, *added: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(model)
    if normalizer is not None:
        made.normalizer = normalizer
    if split is not None:
        made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def byte_level(normalizer: Any = None, split: Any = BYTES, *added: Any) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    return trained(models.BPE(), trainer, normalizer, split, *added)


@cache
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    words = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    pieces = trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return {
        "byte level": byte_level(),
        "composed": byte_level(normalizers.NFC()),
        "spaces written": byte_level(spaces),
        "stripped": byte_level(normalizers.Strip()),
        "spaces dropped": byte_level(None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), BYTES])),
        "spaces swallowed": byte_level(None, BYTES, AddedToken("<|end|>", special=True, rstrip=True)),
        "accents dropped": byte_level(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
        "letters dropped": byte_level(normalizers.Replace(Regex("a+"), "")),
        "controls dropped": byte_level(normalizers.BertNormalizer()),
        "split dropped": byte_level(None, pre_tokenizers.Sequence([pre_tokenizers.Split("a", "removed"), BYTES])),
        "words unknown": trained(models.WordPiece(unk_token="[UNK]"), words, None, pre_tokenizers.Whitespace()),
        "pieces unknown": trained(models.Unigram(), pieces, None, pre_tokenizers.Metaspace()),
    }


KEEPS = ("byte level", "composed", "spaces written")
DROPS_SPACES = ("stripped", "spaces dropped", "spaces swallowed")
HARD = st.sampled_from(["a", " ", "\n", "\u0301", "\u03b1\u0313\u0300\u0345", "<|end|>", "\u200b", "the cat", "漢"])
TEXT = st.one_of(
    st.text(max_size=60), st.lists(HARD, max_size=40).map("".join), st.tuples(HARD, st.integers(1, 3000)).map(lambda p: p[0] * p[1])
)


@pytest.mark.parametrize("name", tokenizers())
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_a_text_never_has_fewer_tokens_than_its_bound(name: str, text: str) -> None:
    tokenizer = tokenizers()[name]
    text = text.encode("utf-8", "ignore").decode()
    assert token_bound(tokenizer).least(text) <= len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", tokenizers())
def test_a_bound_is_given_up_where_characters_are_dropped_and_nowhere_else(name: str) -> None:
    bound = token_bound(tokenizers()[name])
    assert (bound.least("ab " * 100_000) > 0) is (name in (*KEEPS, *DROPS_SPACES))
    assert bound.spaces is (name not in DROPS_SPACES)


@pytest.mark.parametrize(("family", "pieces"), [(family, pieces) for family in FAMILIES for pieces in (False, True)])
def test_what_a_text_needs_at_the_least_decides_whether_it_is_encoded(family: str, pieces: bool) -> None:
    renderer = TemplateRenderer(family_tokenizer(family, pieces=pieces))
    assert renderer.fits("q" * 10, 10)
    assert pieces or not renderer.fits("q" * 10_000_000, 100)


def test_an_unknown_tokenizer_has_no_bound() -> None:
    assert token_bound(object()).least("a" * 10**6) == 0 and TokenBound(16).least("a" * 161) == 11
