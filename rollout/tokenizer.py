"""The tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .tokenizer_files import check_tokenizer_files, refused_by_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder: its files alone, and no code that may come with them.

    Raises ValueError when it cannot be read, or is to be read from elsewhere (`check_tokenizer_files`).
    """
    check_tokenizer_files(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer("a")  # a template of special tokens that are not there is noticed only when it is filled in
    except BaseException as error:  # transformers and its parsers raise many kinds for one cause
        if not refused_by_tokenizers(error):
            raise
        said = str(error).strip().splitlines()
        raise ValueError(
            f"the tokenizer of {folder} cannot be loaded: {type(error).__name__}: {said[0] if said else 'no detail'}"
        ) from error
    tokenizer.model_max_length = int(1e9)  # what is too long is named by us, with its row; transformers would warn of the first one
    return tokenizer
