"""How many tokens a text has at the least, without encoding it: as far as a tokenizer leaves no character out.

A token stands for as many characters as the longest of the vocabulary has, unless the tokenizer drops some before it looks them up: a
normalizer strips accents or runs of spaces, a pre-tokenizer throws spaces away, a special token swallows those around it, and whatever
words are not in the vocabulary become one token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MOST_COMPOSED: Final = 4
"""Characters that Unicode's composed forms (NFC, NFKC) make one of, at the most."""
_KEEPS: Final = ("NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel")
"""Normalizers after which there are as many characters as before, or more."""
_COMPOSES: Final = ("NFC", "NFKC")
_SPACES: Final = ("Whitespace", "WhitespaceSplit", "Strip")
"""What drops white space and nothing else."""


@dataclass(frozen=True, slots=True)
class TokenBound:
    """characters: that one token stands for at the most, infinitely many where nobody knows. spaces: whether white space counts among them.

    Example: `TokenBound(16).least("a" * 160) == 10`.
    """

    characters: float
    spaces: bool = True

    def least(self, text: str) -> int:
        """Tokens that a text has at the least."""
        length = len(text) if self.spaces or math.isinf(self.characters) else sum(map(len, text.split()))
        return math.ceil(length / self.characters)


UNKNOWN: Final = TokenBound(math.inf)


def token_bound(tokenizer: Any) -> TokenBound:
    """The bound of a Hugging Face tokenizer; one that is not known to keep every character has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _knows_every_character(backend):
        return UNKNOWN
    steps = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    kept = [_kept(step) for step in steps]
    if None in kept:
        return UNKNOWN
    composed = any(step["type"] in _COMPOSES for step in steps)
    swallows = any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values())
    longest = max(map(len, tokenizer.get_vocab()))  # in bytes or characters, and no character has less than a byte
    return TokenBound(longest * (MOST_COMPOSED if composed else 1), spaces=all(kept) and not swallows)


def _knows_every_character(backend: Any) -> bool:
    """Whether what is not in the vocabulary is written in bytes, rather than dropped or made one token."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab, model = backend.get_vocab(with_added_tokens=False), backend.model
    if type(model).__name__ not in ("BPE", "Unigram"):
        return False
    if getattr(model, "byte_fallback", False):
        return all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    stages = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    return any(step["type"] == "ByteLevel" for step in stages) and all(letter in vocab for letter in ByteLevel.alphabet())


def _steps(stage: Any, inner: str) -> list[dict[str, Any]]:
    """A normalizer or a pre-tokenizer, or those of a sequence."""
    if stage is None:
        return []
    state = json.loads(stage.__getstate__())
    return list(state[inner]) if state["type"] == "Sequence" else [state]


def _kept(step: Mapping[str, Any]) -> bool | None:
    """Whether a step keeps every character; False where it may drop white space, None where it may drop others, or nobody knows."""
    kind, behavior = step["type"], step.get("behavior")
    if kind in (*_KEEPS, *_COMPOSES, "Metaspace", "Digits", "UnicodeScripts") or (
        kind in ("Split", "Punctuation") and behavior != "Removed"
    ):
        return True
    if kind == "Replace":
        replaced = step["pattern"].get("String")
        if replaced is not None:
            return True if len(step["content"]) >= len(replaced) else False if replaced.isspace() else None
    return False if kind in _SPACES else None
