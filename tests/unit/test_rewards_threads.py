"""Threads for functions that hang: where one is, as whoever wrote it can tell."""

from __future__ import annotations

import threading

import pytest

from burnish.rewards.calling.threads import start

pytestmark = pytest.mark.unit


def test_the_function_that_was_called_is_named_however_deep_it_hangs() -> None:
    begun, release = threading.Event(), threading.Event()

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            begun.set()
            while not release.is_set():
                pass

    def judge() -> None:
        deep(5)

    worker = start("hung", judge)
    assert begun.wait(60)
    found = [line.rpartition(" in ")[2] for line in worker.where()]
    release.set()
    assert found[0] == "judge" and len(found) == 3
