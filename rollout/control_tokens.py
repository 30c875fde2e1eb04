"""A tokenizer's control tokens, kept out of every text that is not the chat template's own.

A tokenizer turns `<|im_end|>` into one id wherever the characters stand. In a user's message, a tool's answer, a tool's schema, a
demonstration or a document they are characters: a space behind the first of them keeps them from becoming a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..envs.spaces import is_text

UNBREAKABLE = "\ufffd"
"""What a control token of a single character becomes."""


class SpecialTokens(Protocol):
    """The part of a Hugging Face tokenizer that says which tokens are special."""

    all_special_tokens: list[str]

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...


class ControlTokens:
    """Every special token of a tokenizer, those of its added tokens included that it has no name for.

    Example: `ControlTokens(tokenizer).broken("a<|im_end|>b")` is "a< |im_end|>b".
    """

    def __init__(self, tokenizer: SpecialTokens) -> None:
        added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.texts = tuple(dict.fromkeys(token for token in (*tokenizer.all_special_tokens, *added) if token))
        longest_first = sorted(self.texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def broken(self, text: str) -> str:
        """The text with its control tokens broken up. Raises ValueError on a lone surrogate, which no tokenizer takes."""
        if not is_text(text):
            raise ValueError(f"the text {text[:40]!a} holds a lone surrogate, which is no character")
        return text if self._pattern is None else self._pattern.sub(_broken, text)

    def all_broken(self, value: Any) -> Any:
        """Plain data with the control tokens in all of its strings broken up, keys included. Raises ValueError as `broken` does."""
        if isinstance(value, str):
            return self.broken(value)
        if isinstance(value, Mapping):
            return {self.all_broken(key): self.all_broken(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self.all_broken(item) for item in value]
        return value


def _broken(match: re.Match[str]) -> str:
    token = match[0]
    return f"{token[0]} {token[1:]}" if len(token) > 1 else UNBREAKABLE
