"""Training data a factory would have: shop-floor text for continued pre-training, inspectors' logs for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...types import Message
from . import wording
from .inspectors import Habits, inspect
from .parts import make_part

TRAIN_SEEDS = 1_000_000_000
"""Parts of seeds below this are for training; the seeds from here on are held out."""


def documents(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Shop-floor text: notes on single features (a fifth), reports on whole parts (a fifth), reports that say of each feature what its
    reading means (three tenths), and sessions at the bench (three tenths)."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, 0xC0D])
        part = make_part(int(rng.integers(TRAIN_SEEDS)), level)
        order = [part.features[k] for k in rng.permutation(len(part.features))]
        kind = rng.choice(4, p=(0.2, 0.2, 0.3, 0.3))
        if kind == 0:
            yield "\n".join(wording.finding(feature) for feature in order)
        elif kind == 1:
            yield wording.report(part, order)
        elif kind == 2:
            yield wording.explained_report(part, order)
        else:
            yield wording.session(part, order)


def factory_texts(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """What a factory has lying about: standards (a quarter), each with a reading that it decides, and shop-floor text (`documents`)."""
    texts = documents(seed, count, level)
    for i, text in enumerate(texts):
        rng = np.random.default_rng([seed, i, 0x57D])
        if rng.random() >= 0.25:
            yield text
            continue
        part = make_part(int(rng.integers(TRAIN_SEEDS)), level)
        feature = part.features[int(rng.integers(len(part.features)))]
        yield f"{wording.standard(feature.name, feature.limit_um)}\n{wording.finding(feature)}"


def logs(
    seed: int,
    count: int,
    level: int = 0,
    error: float = 0.5,
    repeat: float = 0.3,
    thorough: float = 1.0,
    notes: bool = False,
    instructions: bool = True,
) -> Iterator[tuple[Message, ...]]:
    """Conversations of the historical inspector (see `Habits`) over the parts of seeds `seed`, `seed + 1`, …."""
    habits = Habits(error, repeat, thorough, notes)
    for i in range(count):
        yield inspect(seed + i, level, habits, instructions)


def vocabulary(seed: int, count: int, level: int = 0) -> Iterator[str]:
    """Text to train a tokenizer on: documents, and logs with the names of their roles, in equal numbers."""
    yield from documents(seed, count - count // 2, level)
    for log in logs(seed, count // 2, level, instructions=False):
        yield "\n".join(f"{message.role}\n{message.text}" for message in log)
