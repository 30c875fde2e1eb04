"""`burnish/topics-v1`: denied topics, by how similar a text is to what the policy says about them.

A sentence is the mean of static word vectors (the 256-dimensional ones of WordLlama, which its wheel carries): no model is run and nothing
is downloaded. A topic is found where a passage is about it with the probability that its threshold asks (`head`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ...rpc.extras import require
from ..policy import DetectorUse, Policy
from ..registry import Find, detector
from ..types import Match
from .head import EVERYDAY, Vectors, fit, jumbled

WEIGHTS, TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"
NEARLY = 0.95
"""The cosine from which a passage is taken for an example."""
STRETCH, OVERLAP = 20_000, 1000
"""Characters of a long text that are looked at together, and those that two stretches share."""
MAX_PASSAGE = 1000
"""Characters of a passage; a longer sentence is looked at in pieces."""
FEWEST = 16
"""Characters of a sentence that stands for itself; a shorter one belongs to the next."""
SENTENCES = 3
"""A passage is a sentence, or so many of them one after the other."""

_SENTENCE = re.compile(r"[^.:!?\n。：！？]+[.:!?\n。：！？]*")

Parts = Callable[[str, Sequence[tuple[int, int]]], Vectors]


class Embedder:
    """Texts as unit vectors `[256]`; a text without a known token is a zero vector, similar to nothing."""

    def __init__(self) -> None:
        require("a policy with topics", ["safetensors", "tokenizers", "wordllama"], "guard")
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        spec = find_spec("wordllama")
        assert spec is not None and spec.origin is not None, "required above"
        home = Path(spec.origin).parent
        self._vectors = load_file(home / WEIGHTS)["embedding.weight"].astype(np.float32)
        self._tokenizer: Any = Tokenizer.from_file(str(home / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of the texts `[N, 256]`, without regard to case."""
        return np.stack([self.parts(text, [(0, len(text))])[0] for text in texts])

    def parts(self, text: str, where: Sequence[tuple[int, int]]) -> Vectors:
        """Unit vectors `[N, 256]` of parts of a text, which is read once: the mean of a part is a difference of sums."""
        lower = text.lower()
        read = self._tokenizer.encode(lower if len(lower) == len(text) else text, add_special_tokens=False)
        sums = np.zeros((len(read.ids) + 1, self._vectors.shape[1]), np.float32)
        sums[1:] = self._vectors[read.ids]
        for i in range(2, len(sums)):  # np.cumsum along the first axis goes down one column after the other, and takes four times as long
            sums[i] += sums[i - 1]
        begins = np.asarray([start for start, _ in read.offsets], np.int64)
        first = np.searchsorted(begins, [start for start, _ in where])
        last = np.searchsorted(begins, [end for _, end in where])
        total: Vectors = sums[last] - sums[first]
        made: Vectors = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)
        return made


@lru_cache(maxsize=1)
def embedder() -> Embedder:
    """The one of this process: its 16 MB are read once."""
    return Embedder()


@detector("burnish/topics-v1")
def topics(policy: Policy, use: DetectorUse) -> Find:
    """Finds `[[topics]]`, in each text the passage that is most likely about one."""
    embed = embedder()
    return find_topics(policy, embed, embed.parts)


def _scorer(allowed: Vectors, denied: Sequence[Vectors]) -> Callable[[Vectors], tuple[Vectors, Vectors]]:
    """How likely each passage is about a topic, and about which. One that nearly is an example is what the example is."""
    head = fit(allowed, denied)
    examples, begins = np.concatenate(denied), np.cumsum([0, *(len(one) for one in denied[:-1])])

    def score(vectors: Vectors) -> tuple[Vectors, Vectors]:
        likely, which = head(vectors)
        equal = np.maximum.reduceat(_products(vectors, examples), begins, axis=1)
        harmless = _products(vectors, allowed).max(axis=1)
        top, most = equal.argmax(axis=1), equal.max(axis=1)
        near = np.maximum(most, harmless) >= NEARLY
        return np.where(near, np.where(most > harmless, most, 0.0), likely), np.where(near, top, which)

    return score


def _products(vectors: Vectors, examples: Vectors) -> Vectors:
    """`vectors @ examples.T`, a row at a time: of larger products OpenBLAS makes threads, which wait for each other for many times as long
    as so small a one takes wherever something else runs too."""
    return np.stack([examples @ one for one in vectors])


def find_topics(policy: Policy, embed: Callable[[Sequence[str]], Vectors], parts: Parts) -> Find:
    """Finds a policy's topics with vectors of texts (`embed`), and of parts of a text (`parts`)."""
    near, denied = [text for topic in policy.topics for text in topic.allowed], [embed(topic.examples) for topic in policy.topics]
    examples = [text for one in policy.allowed for text in one.examples]
    with_examples = _scorer(embed([*near, *examples, *EVERYDAY, *map(jumbled, EVERYDAY)]), denied)
    always = np.array([policy.categories[topic.category].always_on for topic in policy.topics])
    without = _scorer(embed([*near, *EVERYDAY, *map(jumbled, EVERYDAY)]), denied) if examples and always.any() else None

    def scored(vectors: Vectors) -> Iterator[tuple[float, int]]:
        score, which = with_examples(vectors)
        if without is not None:  # what is always on, `[[allowed]]` does not allow around
            strict, strictly = without(vectors)
            instead = always[strictly] & (strict > score)
            score, which = np.where(instead, strict, score), np.where(instead, strictly, which)
        return zip(score.tolist(), which.tolist(), strict=True)

    def find(text: str) -> Iterator[Match]:
        best: dict[str, Match] = {}
        for at in range(0, max(1, len(text) - OVERLAP), STRETCH - OVERLAP):
            stretch = text[at : at + STRETCH]
            where = passages(stretch)
            for (start, end), (score, index) in zip(where, scored(parts(stretch, where)) if where else (), strict=True):
                topic = policy.topics[index]
                if score >= topic.threshold and (topic.name not in best or score > best[topic.name].score):
                    best[topic.name] = Match(topic.name, topic.category, at + start, at + end, score=min(1.0, score))
        yield from best.values()

    return find


def passages(text: str) -> list[tuple[int, int]]:
    """Where the passages of a text begin and end: each sentence, each three that follow each other, and the whole when it is short."""
    sentences: list[tuple[int, int]] = []
    for found in _SENTENCE.finditer(text):
        for start in range(found.start(), found.end(), MAX_PASSAGE):
            end = min(start + MAX_PASSAGE, found.end())
            if sentences and sentences[-1][1] - sentences[-1][0] < FEWEST:
                sentences[-1] = (sentences[-1][0], end)
            else:
                sentences.append((start, end))
    several = [(group[0][0], group[-1][1]) for i in range(len(sentences) - 1) if len(group := sentences[i : i + SENTENCES]) > 1]
    whole = [(0, len(text))] if 0 < len(text) <= MAX_PASSAGE else []
    return list(dict.fromkeys([*sentences, *several, *whole]))
