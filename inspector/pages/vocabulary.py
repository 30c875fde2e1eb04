"""A run's tokenizer as pages need it: what each token stands for, and nothing of its file that costs more than that.

Whoever wrote the file may have written regular expressions that take hours, which hold the whole process meanwhile, and steps that
make a gigabyte of a letter. Only what splits texts has such by right, so that is left out, and a decoder has to be of steps that shorten.
So is what a model splits words by: the library makes a tree of a Unigram model, as deep as its longest token, and frees it one call
within the other, which ends the process of a token of 200,000 letters. A list of tokens says which text each stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from ...rollout.store.own_files import read_whole
from ...rollout.tokenizer_files import MOST_VALUES, refused_by_tokenizers

MOST_ADDED: Final = 8 << 20
"""Characters of JSON of all added tokens: an automaton is made that looks for them. One has some 150."""
MOST_LETTERS: Final = 1 << 20
"""Bytes of the texts of all added tokens: each takes 80 in the automaton."""
MOST_STEPS: Final = 16
"""Of a decoder. Models have five."""
PLAIN: Final = ("ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece")
"""Steps that make no text longer than by what stands between two tokens."""
REPLACED: Final = {"BPEDecoder": "suffix", "CTC": "word_delimiter_token"}
"""Steps that put a space in the place of a text, which has to be one."""


def load_vocabulary(file: Path) -> Tokenizer:
    """What can say which text a token stands for, and cannot encode. Raises ValueError for a file that is none, or has a decoder that no
    model needs."""
    content = read_whole(file)
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"{file}: is no tokenizer: it has more than {MOST_VALUES:,} values")
    try:
        found = json.loads(content)
        kept = {key: found.get(key) for key in ("version", "added_tokens", "decoder", "model")} if isinstance(found, dict) else {}
        added = kept.get("added_tokens")
        is_long = len(json.dumps(added)) > MOST_ADDED or _letters(added) > MOST_LETTERS
        content = json.dumps(kept | {"model": _listed(kept.get("model"))}).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is no tokenizer: {error!s:.200}") from None
    if is_long:
        raise ValueError(f"{file}: the tokens cannot be shown: its added tokens are longer than any model's")
    for problem in _problems(kept.get("decoder")):
        raise ValueError(f"{file}: the tokens cannot be shown: {problem}")
    try:
        return Tokenizer.from_buffer(content)
    except BaseException as error:
        if not refused_by_tokenizers(error):
            raise
        raise ValueError(f"{file}: is no tokenizer: {error!s:.200}") from None


def _listed(model: Any) -> dict[str, Any]:
    """A model of the same tokens that splits nothing. Raises ValueError when it is none, or has a token twice."""
    found = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(found, list):  # of a Unigram model: [token, score], in the order of the ids
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in found]
        if not all(isinstance(piece, str) for piece in pieces):
            raise ValueError("its model lists what is no token")
        found = {piece: number for number, piece in enumerate(pieces)}
        if len(found) < len(pieces):
            raise ValueError("its model lists a token twice")
    return {"type": "WordLevel", "vocab": found, "unk_token": ""}


def _letters(added: Any) -> int:
    texts = [one.get("content") for one in added if isinstance(one, Mapping)] if isinstance(added, list) else []
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts if isinstance(text, str))


def _problems(decoder: Any) -> Iterator[str]:
    """Why a decoder may take longer than its tokens are long."""
    if decoder is None:
        return
    steps = decoder.get("decoders") if _kind(decoder) == "Sequence" else [decoder]
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        yield f"its decoder is no sequence of at most {MOST_STEPS} steps"
        return
    for step in steps:
        kind = _kind(step)
        if kind == "Replace":
            pattern, content = step.get("pattern"), step.get("content")
            text = pattern.get("String") if isinstance(pattern, Mapping) else None
            if not isinstance(text, str) or not isinstance(content, str) or not text or len(content) > len(text):
                yield "its decoder replaces what a regular expression finds, or a text by a longer one"
        elif kind in REPLACED:
            if not step.get(REPLACED[kind]):
                yield f"its decoder has a step {kind} without a {REPLACED[kind]}"
        elif kind not in PLAIN:
            yield f"its decoder has a step {kind!r:.80}, which is none of those that pages decode by"


def _kind(step: Any) -> str:
    return str(step.get("type")) if isinstance(step, Mapping) else ""
