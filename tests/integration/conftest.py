"""Fixtures that several integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

TEXTS = [f"part {i} bore {i % 7}.{i % 10} limit {i % 5}.0 verdict {('pass', 'rework', 'scrap')[i % 3]}" for i in range(200)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama (hidden 64, head size 32, tied embeddings, 256 positions) with a tokenizer of about 300 entries."""
    from burnish.trainer.models import ModelSize, new_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(TEXTS, folder, ModelSize(hidden=64, layers=2, heads=2, intermediate=128, vocab_size=300, max_position=256))
    return folder
