"""The files of a tokenizer: what in the small ones would have another file read in place of the folder's own, and what in the large one
would end the process that loads it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from .store.own_files import read_whole

REFUSED: Final = ("fast_tokenizer_files", "init_inputs", "vocab_file", "merges_file", "spm_file", "gguf_file", "tokenizer_object")
"""Keys of `tokenizer_config.json` by which transformers would read a tokenizer from elsewhere than `tokenizer.json`."""
MOST_VALUES: Final = 8_000_000
"""In one file: a vocabulary of 260,000 tokens with its merges has a fifth of that."""
LONGEST_TOKEN: Final = 10_000
"""Letters. The tokenizers library makes a tree of a Unigram model, as deep as its longest token, and frees it one call within the other."""


def check_tokenizer_files(folder: Path) -> None:
    """Raise ValueError when the small files of a tokenizer name another file to read it from or are no JSON objects, or a token of the
    large one is longer than any model's.

    transformers takes `special_tokens_map.json` for arguments too, so that file may name tokens and nothing else.
    """
    config = _object(folder / "tokenizer_config.json")
    for key in REFUSED:
        if config.get(key) not in (None, [], ()):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: {key} has the tokenizer read from elsewhere; remove it")
    for key in _object(folder / "special_tokens_map.json"):
        if not key.endswith(("_token", "_tokens")):
            raise ValueError(f"{folder / 'special_tokens_map.json'}: {key!r:.60} names no token; remove it")

    file = folder / "tokenizer.json"
    longest = _longest_token(file, file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else 0
    if longest > LONGEST_TOKEN:
        raise ValueError(f"the tokenizer of {folder} cannot be loaded: {file.name} has a token of {longest:,} letters, which no model has")


@lru_cache(maxsize=64)
def _longest_token(file: Path, changed: int, size: int) -> int:
    content = read_whole(file)
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"the tokenizer of {file.parent} cannot be loaded: {file.name} has more than {MOST_VALUES:,} values")
    try:
        read = json.loads(content, object_pairs_hook=_once)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return 0  # no JSON, which no library reads: whoever loads it, or holds it to its digest, says what is wrong
    except (ValueError, RecursionError) as error:  # and this one may read it
        raise ValueError(f"the tokenizer of {file.parent} cannot be loaded: {file.name} is not valid JSON: {error!s:.200}") from None
    return max((len(token) for token in _tokens(read) if isinstance(token, str)), default=0) if isinstance(read, dict) else 0


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError when a key stands there twice: whose value counts, each reader decides for itself."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {max(counted, key=counted.__getitem__)!r:.60} stands there twice")
    return found


def _tokens(tokenizer: Mapping[str, Any]) -> Iterable[Any]:
    """What may be a token, of a file of any form; whether it is one, the tokenizers library says."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    listed = [piece[0] for piece in vocab if isinstance(piece, list) and piece] if isinstance(vocab, list) else []
    pieces = vocab if isinstance(vocab, dict) else listed
    named = [one.get("content") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    return [*pieces, *named]


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = read_whole(file)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tokenizer of {file.parent} cannot be loaded: {file.name} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"the tokenizer of {file.parent} cannot be loaded: {file.name} must hold a JSON object")
    return data


def refused_by_tokenizers(error: BaseException) -> bool:
    """Whether this is how the tokenizers library says that it cannot read a file: an exception of no kind of its own, or a panic of its
    Rust, which is no `Exception` and cannot be imported."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
