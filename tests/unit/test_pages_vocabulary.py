"""The tokens of a run folder from elsewhere, which may hold a tokenizer that nobody would train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from burnish.inspector.pages import vocabulary
from burnish.inspector.pages.tokens import _texts
from burnish.inspector.pages.vocabulary import load_vocabulary
from burnish.trainer.models.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

SLOW = {"Regex": "a*a*!(?=b)"}
BYTES = {"type": "BPE", "vocab": {"▁a": 0, "<0xC3>": 1, "<0xA9>": 2, "b": 3}, "merges": [], "byte_fallback": True}
LLAMA = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def written(folder: Path, **parts: Any) -> Path:
    made: dict[str, Any] = {
        "version": "1.0",
        "model": BYTES,
        "decoder": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
    }
    (folder / "tokenizer.json").write_text(json.dumps(made | parts))
    return folder / "tokenizer.json"


def test_tokens_read_as_the_whole_tokenizer_reads_them(tmp_path: Path) -> None:
    file = written(tmp_path, decoder={"type": "Sequence", "decoders": LLAMA})
    assert _texts([0, 1, 2, 3], load_vocabulary(file)) == _texts([0, 1, 2, 3], Tokenizer.from_file(str(file))) == [" a", "", "é", "b"]
    model, whole = tmp_path / "own.json", train_tokenizer(["Grüße, Löcher"], 300, 64).backend_tokenizer
    whole.save(str(model))
    ids = whole.encode("<|im_start|>Grüße, 17 Löcher\n\tß").ids
    assert _texts(ids, load_vocabulary(model)) == _texts(ids, whole)


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        ({"type": "Replace", "pattern": SLOW, "content": "x"}, "a regular expression"),
        ({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 9}, "by a longer one"),
        ({"type": "Replace", "pattern": {"String": ""}, "content": ""}, "by a longer one"),
        ({"type": "BPEDecoder", "suffix": ""}, "BPEDecoder without a suffix"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}] * 17}, "at most 16 steps"),
        ({"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": []}]}, "'Sequence', which is none of those"),
        ("Fuse", "which is none of those"),
        ({"type": ["Fuse"]}, "which is none of those"),
    ],
)
def test_a_decoder_that_may_take_for_ever_is_not_run(decoder: Any, says: str, tmp_path: Path) -> None:
    """One token of 1,200 characters took eight seconds, and the run whose dashboard it was stood still."""
    with pytest.raises(ValueError, match=f"the tokens cannot be shown: its decoder .*{says}"):
        load_vocabulary(written(tmp_path, decoder=decoder))


def test_what_splits_texts_is_left_out(tmp_path: Path) -> None:
    """Added tokens go through the normalizer when a file is read."""
    hours = {
        "id": 4,
        "content": "a" * 100_000 + "!",
        "normalized": True,
        "special": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }
    split = {"type": "Split", "pattern": SLOW, "behavior": "Isolated", "invert": False}
    replace, decoder = {"type": "Replace", "pattern": SLOW, "content": "x"}, {"type": "Sequence", "decoders": LLAMA}
    file = written(tmp_path, normalizer=replace, pre_tokenizer=split, decoder=decoder, added_tokens=[hours])
    read = load_vocabulary(file)
    assert read.normalizer is None and read.pre_tokenizer is None
    assert _texts([4, 1, 4], read) == ["a" * 200 + "…", "\ufffd", "a" * 200 + "…"]


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]], "byte_fallback": False}
WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "x",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 9,
    "vocab": {"b": 0, "##d": 1, "c": 2},
}
MERGED = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        (UNIGRAM, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}),
        (WORD_PIECE, {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        (MERGED, None),
        ({"type": "WordLevel", "vocab": {"a": 2, "b": 1, "c": 0}, "unk_token": "a"}, None),
    ],
)
def test_tokens_of_every_kind_of_model_read_as_the_whole_tokenizer_reads_them(model: Any, decoder: Any, tmp_path: Path) -> None:
    added = {"id": 3, "content": "<end>", "normalized": False, "special": True, "lstrip": False, "rstrip": False, "single_word": False}
    file = written(tmp_path, model=model, decoder=decoder, added_tokens=[added])
    read, whole = load_vocabulary(file), Tokenizer.from_file(str(file))
    assert _texts([1, 2, 0, 3, 1], read) == _texts([1, 2, 0, 3, 1], whole)
    assert [read.id_to_token(one) for one in range(5)] == [whole.id_to_token(one) for one in range(5)]


@pytest.mark.parametrize("model", [UNIGRAM, MERGED, WORD_PIECE])
def test_no_tree_is_made_of_tokens_of_any_length(model: dict[str, Any], tmp_path: Path) -> None:
    """A Unigram model's is as deep as its longest token: one of 200,000 letters ended the process that let go of it."""
    read = load_vocabulary(written(tmp_path, model=model))
    assert type(read.model).__name__ == "WordLevel"
    long = {**UNIGRAM, "vocab": [["<unk>", 0.0], ["a" * 200_000, -1.0]]}
    assert _texts([1, 0], load_vocabulary(written(tmp_path, model=long))) == ["a" * 200 + "…", "<unk>"]


@pytest.mark.parametrize("vocab", [[["a", 0.0], ["a", -1.0]], [["a", 0.0], 3], [["a", 0.0], []], [[1, 0.0]], None, "ab", [["\ud800", 0.0]]])
def test_a_list_of_no_tokens_is_refused(vocab: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no tokenizer: "):
        load_vocabulary(written(tmp_path, model={"type": "Unigram", "unk_id": 0, "vocab": vocab}))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MOST_VALUES", 1000)
    monkeypatch.setattr(vocabulary, "MOST_ADDED", 1000)
    monkeypatch.setattr(vocabulary, "MOST_LETTERS", 300)
    file = tmp_path / "tokenizer.json"
    for content, says in (
        ("{", "is no tokenizer"),
        ("[]", "is no tokenizer"),
        ("[" * 900, "is no tokenizer"),
        ("[" + "[]," * 600 + "0]", "more than 1,000 values"),
        (json.dumps({"added_tokens": "x" * 1000}), "added tokens are longer"),
        (json.dumps({"added_tokens": [{"content": "é" * 76}] * 2}), "added tokens are longer"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=says):
            load_vocabulary(file)
