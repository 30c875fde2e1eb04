"""What Ray Serve is told of the chat service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.serving import deploy
from burnish.serving.config import ServingConfig
from burnish.serving.rules import Rules

pytestmark = pytest.mark.unit


def test_what_waits_for_the_model_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Serve's own queue has no end: a client that is not told to come again would wait for all that came before it."""
    told: dict[str, Any] = {}

    def deployment(service: Any, **options: Any) -> Any:
        told.update(options)
        return SimpleNamespace(bind=lambda *arguments: None)

    serve = SimpleNamespace(
        deployment=deployment, start=lambda **options: None, run=lambda *app, **options: None, HTTPOptions=SimpleNamespace
    )
    monkeypatch.setattr(deploy, "serve", serve)
    monkeypatch.setattr(deploy, "is_ready", lambda url: True)
    deploy._deploy(tmp_path, "chat", ServingConfig(max_concurrent=3), Rules(), 8000, "http://127.0.0.1:8000")
    assert (told["max_ongoing_requests"], told["max_queued_requests"]) == (3 * 17 + 128, 128)
