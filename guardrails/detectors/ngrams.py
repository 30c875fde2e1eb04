"""A linear classifier over words, pairs of words and pieces of words, hashed: small, quick to load, and the same everywhere.

A classifier is a folder of two files, neither of which can hold code:

    attacks/classifier.json         how texts are read, threshold, what it was trained on and measured by, SHA-256 of the weights
    attacks/weights.safetensors     a number for each bucket: "weights" `[2 ** bits]`, float32

Its digest is the SHA-256 of `classifier.json`, and so of both files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...envs.pydantic_words import message_of
from ...envs.rows import json_object
from ...rpc.extras import require

CARD, WEIGHTS = "classifier.json", "weights.safetensors"
MAX_CARD = 100_000
FORMAT: Final = "burnish-ngrams-v1"
BITS = 18
"""Two to this power are the buckets that features are hashed into."""
KEPT_WORDS = 2048
"""Words whose features are kept: texts from outside have any number of words."""
LONGEST_KEPT = 20
"""Characters of a word that is kept. Longer ones have the most features and seldom come again."""
_TOKEN = re.compile(r"\w{1,40}|[^\w\s]")

Weights = npt.NDArray[np.float32]


class Card(BaseModel):
    """What `classifier.json` says.

    bias: what is added to every score. threshold: the probability from which a text is found. false_positives: the share of harmless
    texts that the threshold was chosen for. report: what was measured on rows that it never saw, for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["burnish-ngrams-v1"]
    bits: int = Field(ge=8, le=20)
    bias: float
    threshold: float = Field(gt=0, lt=1)
    false_positives: float = Field(gt=0, lt=1)
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    seed: int
    rows: int = Field(ge=0)
    report: dict[str, Any] = {}


def pieces(word: str, bits: int) -> tuple[int, ...]:
    """The buckets of a word: of itself, and of its pieces of three to five characters, of two to four where letters are not Latin."""
    return _kept_pieces(word, bits) if len(word) <= LONGEST_KEPT else _pieces(word, bits)


@lru_cache(maxsize=KEPT_WORDS)
def _kept_pieces(word: str, bits: int) -> tuple[int, ...]:
    return _pieces(word, bits)


def _pieces(word: str, bits: int) -> tuple[int, ...]:
    if len(word) == 1 and word.isascii():
        return (_bucket(f"w{word}", bits),)
    edged = f" {word} "
    sizes = (3, 4, 5) if word.isascii() else (2, 3, 4)
    found = [f"c{edged[i : i + size]}" for size in sizes for i in range(len(edged) - size + 1)]
    return tuple(_bucket(one, bits) for one in (f"w{word}", *found))


def pair(first: str, second: str, bits: int) -> int:
    """The bucket of two words that follow each other."""
    return _bucket(f"b{first} {second}", bits)


def _bucket(feature: str, bits: int) -> int:
    return crc32(feature.encode("utf-8", "surrogatepass")) & ((1 << bits) - 1)


def tokens(text: str) -> Iterator[tuple[int, str]]:
    """Where each word or sign of a text begins, and what it is, in small letters."""
    lower = text.lower()
    return ((found.start(), found[0]) for found in _TOKEN.finditer(lower if len(lower) == len(text) else text))


def buckets(text: str, bits: int) -> list[int]:
    """The buckets of all features of a text, one as often as it occurs."""
    words = [word for _, word in tokens(text)]
    found = [bucket for word in words for bucket in pieces(word, bits)]
    return found + [pair(first, second, bits) for first, second in pairwise(words)]


class Classifier:
    """Scores texts. A part of a text scores as the sum of its features' weights, by the square root of their number."""

    def __init__(self, card: Card, weights: Weights, digest: str) -> None:
        self.card, self.digest, self.weights = card, digest, weights
        self._kept_sum = lru_cache(maxsize=KEPT_WORDS)(partial(_word_sum, weights, card.bits))

    def probabilities(self, text: str, where: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
        """How likely each part of a text, given by its start and end, is to be found `[N]`. A part without features is found with 0."""
        begins, words, pairs = list[int](), [(0.0, 0)], [0.0]
        before = None
        for start, word in tokens(text):
            begins.append(start)
            words.append(self._kept_sum(word) if len(word) <= LONGEST_KEPT else _word_sum(self.weights, self.card.bits, word))
            pairs.append(0.0 if before is None else float(self.weights[pair(before, word, self.card.bits)]))
            before = word
        sums = np.cumsum(np.asarray(words, np.float64), axis=0)
        joined = np.cumsum(np.asarray(pairs, np.float64))
        first = np.searchsorted(begins, [start for start, _ in where])
        last = np.searchsorted(begins, [end for _, end in where])
        inner = np.minimum(first + 1, last)  # the pair that reaches into a part is none of its own
        total = sums[last, 0] - sums[first, 0] + joined[last] - joined[inner]
        count = sums[last, 1] - sums[first, 1] + (last - inner)
        score = total / np.sqrt(np.maximum(count, 1)) + self.card.bias
        likely: npt.NDArray[np.float64] = np.where(count > 0, 1 / (1 + np.exp(-np.clip(score, -500, 500))), 0.0)
        return likely


def _word_sum(weights: Weights, bits: int, word: str) -> tuple[float, int]:
    """The sum of the weights of a word's features, and their number."""
    found = _pieces(word, bits)
    return float(weights[list(found)].sum(dtype=np.float64)), len(found)


def sketch(weights: Weights, bias: float, threshold: float = 0.5, false_positives: float = 0.5, seed: int = 0, rows: int = 0) -> Classifier:
    """A classifier that is in no folder yet, and so has no digest. weights: `[2 ** BITS]`."""
    numbers = {"bias": bias, "threshold": threshold, "false_positives": false_positives, "seed": seed, "rows": rows}
    return Classifier(Card.model_validate({"format": FORMAT, "bits": BITS, "weights_sha256": "0" * 64, **numbers}), weights, "")


def save(folder: Path, card: Mapping[str, Any], weights: Weights) -> str:
    """Write a classifier into an empty folder, and give its digest. card: what `Card` has, without format and SHA-256 of the weights.

    Raises ValueError, and writes nothing, where `load` would not take it.
    """
    require("a guardrail classifier", ["safetensors"], "guard")
    from safetensors.numpy import save as to_bytes

    data = to_bytes({"weights": np.ascontiguousarray(weights, np.float32)})
    said = Card.model_validate({"format": FORMAT, "weights_sha256": hashlib.sha256(data).hexdigest(), **card})
    text = json.dumps(said.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False).encode()
    if len(text) > MAX_CARD:
        raise ValueError(f"{CARD} would have {len(text)} bytes, and a classifier's has {MAX_CARD} at most; give a shorter report")
    if weights.shape != (1 << said.bits,) or not np.isfinite(weights).all():
        raise ValueError(f"the weights must be {1 << said.bits} finite numbers")
    (folder / WEIGHTS).write_bytes(data)
    (folder / CARD).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def load(folder: Path, digest: str = "") -> Classifier:
    """The classifier in a folder. digest: the one that it must have.

    Raises ValueError, on one line, when a file is missing, too large, damaged or not the one that the digest or the card names.
    """
    require("a guardrail classifier", ["safetensors"], "guard")
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    text = _read(folder / CARD, MAX_CARD)
    found = hashlib.sha256(text).hexdigest()
    if digest and found != digest:
        raise ValueError(f"{folder}: is classifier {found}, not {digest}; give the digest of the one that is meant")
    try:
        card = Card.model_validate(json_object(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{folder / CARD}: {'.'.join(map(str, first['loc']))}: {message_of(first)}") from None
    except ValueError as error:
        raise ValueError(f"{folder / CARD}: {error}") from None
    file, shape = folder / WEIGHTS, (1 << card.bits,)
    data = _read(file, 4 * shape[0] + MAX_CARD)
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise ValueError(f"{file}: is not the file that {CARD} was written for; its SHA-256 differs")
    try:
        tensors = from_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: is no safetensors file: {error}") from None
    weights = tensors.get("weights")
    if weights is None or len(tensors) != 1 or weights.shape != shape or weights.dtype != np.float32:
        raise ValueError(f"{file}: must hold one tensor, weights, of {shape[0]} numbers in float32")
    if not math.isfinite(float(np.abs(weights).max())):
        raise ValueError(f"{file}: holds numbers that are not finite")
    return Classifier(card, weights, found)


def _read(file: Path, most: int) -> bytes:
    """The bytes of a file, a plain one. Raises ValueError when there is none, or it has more than `most`."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; a classifier is a folder with {CARD} and {WEIGHTS}")
    try:
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or error}") from None
    if len(data) > most:
        raise ValueError(f"{file}: has more than {most} bytes, and no classifier has")
    return data
