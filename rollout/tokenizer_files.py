"""The small files of a tokenizer: what in them would have another file read in place of the folder's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from .store.own_files import read_whole

REFUSED: Final = ("fast_tokenizer_files", "init_inputs", "vocab_file", "merges_file", "spm_file", "gguf_file", "tokenizer_object")
"""Keys of `tokenizer_config.json` by which transformers would read a tokenizer from elsewhere than `tokenizer.json`."""


def check_tokenizer_files(folder: Path) -> None:
    """Raise ValueError when the small files of a tokenizer name another file to read it from, or are no JSON objects.

    transformers takes `special_tokens_map.json` for arguments too, so that file may name tokens and nothing else.
    """
    config = _object(folder / "tokenizer_config.json")
    for key in REFUSED:
        if config.get(key) not in (None, [], ()):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: {key} has the tokenizer read from elsewhere; remove it")
    for key in _object(folder / "special_tokens_map.json"):
        if not key.endswith(("_token", "_tokens")):
            raise ValueError(f"{folder / 'special_tokens_map.json'}: {key!r:.60} names no token; remove it")


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
