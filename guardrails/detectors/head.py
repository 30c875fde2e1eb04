"""Which of a policy's topics a passage is about: softmax regression on its vector, fitted to the policy's own examples as it is read.

Every topic is a class, and what is allowed is one more, which everyday sentences join. So likeness to "how do I …" counts for nothing,
since harmless questions begin alike, and what tells a topic from what is near it counts for much. It takes no file and no randomness: the
same policy gives the same weights.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

SCALE = 5.0
"""What unit vectors are multiplied with: their differences are small."""
PENALTY = 1e-2
STEPS = 400

EVERYDAY = (
    "What time is it?",
    "Tell me about the weather tomorrow.",
    "Write a short story about a dog.",
    "How do I cook rice?",
    "Which book should I read next?",
    "Translate this sentence into French.",
    "Explain how a bicycle works.",
    "What is the largest lake in Europe?",
    "Fix the grammar of this paragraph.",
    "Give me ideas for dinner.",
    "How do I learn to play the piano?",
    "Write an email to my team about the meeting.",
    "What does this error message mean?",
    "Sort this list of names.",
    "Who wrote Faust?",
    "Recommend a film for tonight.",
    "How far is the moon?",
    "Make a packing list for a week at the sea.",
    "What is the difference between tea and coffee?",
    "Help me plan my day.",
    "Write a function that adds two numbers.",
    "How do I open an account at a bank?",
    "What are good questions for an interview?",
    "Describe how a plant grows.",
    "How do I ask for a day off?",
    "Wie wird das Wetter morgen?",
    "Schreibe ein Gedicht über den Herbst.",
    "Wie lerne ich schneller Englisch?",
    "Was koche ich heute Abend?",
    "Erkläre mir, wie ein Motor funktioniert.",
    "Wo liegt der Bodensee?",
    "Übersetze diesen Satz.",
    "Wie komme ich zum Bahnhof?",
    "今日は何曜日ですか",
    "短い物語を書いてください",
    "料理の方法を教えて",
    "この文を英語に訳して",
    "おすすめの本を教えてください",
    "駅への行き方を教えて",
    "犬の飼い方を説明して",
)
"""Harmless sentences that no policy needs to write down."""


def jumbled(text: str) -> str:
    """The text in an encoding. What a text says in one is read apart (`readings`): how it looks there is about nothing.

    Example: `jumbled("What time is it?")` is in base64, `jumbled("How do I cook rice?")` in rot13.
    """
    return codecs.encode(text, "rot13") if len(text) % 2 and text.isascii() else base64.b64encode(text.encode()).decode()


@dataclass(frozen=True)
class Head:
    """Fitted weights `[D + 1, K + 1]`; the first class is what is allowed, the others are K topics."""

    weights: npt.NDArray[np.float64]

    def __call__(self, vectors: Vectors) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
        """For each vector `[N, D]` the probability that it is about any topic `[N]`, and about which most likely `[N]`."""
        shares = _softmax(_extended(vectors) @ self.weights)
        return 1.0 - shares[:, 0], shares[:, 1:].argmax(axis=1)


def fit(allowed: Vectors, topics: Sequence[Vectors]) -> Head:
    """The head of topics by their examples' unit vectors.

    What is allowed weighs as much as all topics together. Accelerated gradient descent (Nesterov, 1983) with the step that the largest
    curvature allows, a fixed number of times.
    """
    classes = [allowed, *topics]
    x = _extended(np.concatenate(classes))
    y = np.concatenate([np.full(len(one), i) for i, one in enumerate(classes)])
    target = np.eye(len(classes))[y]
    found = sum(map(len, topics))
    share = np.where(y == 0, 0.5 / len(allowed), 0.5 / found)[:, None]
    penalty = np.full((x.shape[1], 1), 2 * PENALTY)
    penalty[-1] = 0.0  # the constant is free
    curvature = 0.5 * np.linalg.norm(x * np.sqrt(share), 2) ** 2 + 2 * PENALTY
    weights = ahead = np.zeros((x.shape[1], len(classes)))
    momentum = 1.0
    for _ in range(STEPS):
        slope = x.T @ (share * (_softmax(x @ ahead) - target)) + penalty * ahead
        moved = ahead - slope / curvature
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * (moved - weights)
        weights, momentum = moved, following
    return Head(weights)


def _extended(vectors: Vectors) -> npt.NDArray[np.float64]:
    return np.concatenate([vectors.astype(np.float64) * SCALE, np.ones((len(vectors), 1))], axis=1)


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    made: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return made
