"""What vLLM's structured outputs let a model write, with bytes for tokens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import xgrammar

END = 256
"""The token that ends an answer; the others are bytes."""


def compiled(form: dict[str, Any]) -> Any:
    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo([*(bytes([i]) for i in range(256)), b"<end>"], vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[END])
    )
    return compiler.compile_grammar(form["grammar"]) if "grammar" in form else compiler.compile_structural_tag(form["structural_tag"])


def fits(grammar: Any, text: str) -> bool:
    """Whether a model may write this and end."""
    matcher = xgrammar.GrammarMatcher(grammar)
    return bool(matcher.accept_string(text) and matcher.accept_token(END))


def anything(grammar: Any, chance: random.Random) -> str:
    """What a model may write that knows nothing and likes to come to an end."""
    matcher, said = xgrammar.GrammarMatcher(grammar), bytearray()
    bitmask = xgrammar.allocate_token_bitmask(1, END + 1)
    while not matcher.is_terminated():
        matcher.fill_next_token_bitmask(bitmask)
        bits = np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")[: END + 1]
        allowed = np.flatnonzero(bits).tolist() or [END]
        closing = [one for one in allowed if one == END or chr(one) in "\"')]}<"] if len(said) > 100 else []
        token = chance.choice(closing or allowed)
        assert matcher.accept_token(token)
        if token != END:
            said.append(token)
    return said.decode(errors="replace")  # as tokenizers do with bytes that are no character
