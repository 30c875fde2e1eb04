"""The tiers: a test belongs to the tier of its folder, and unit tests get less time before they count as hanging."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

TIERS = ("unit", "integration", "fuzz", "gpu")
UNIT_TIMEOUT_S = 200.0


def pytest_configure() -> None:
    """Hear Ctrl-C, and let the programs that tests start hear it, even where these tests run in a shell's background. Where several
    processes run tests, torch has one thread in each: small models gain nothing from two, and lose much where the cores are busy."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        folder = item.path.relative_to(here).parts[0]
        if folder not in TIERS:
            raise pytest.UsageError(f"{item.path} is in none of tests/{{{','.join(TIERS)}}}/")
        item.add_marker(folder)
        if folder == "unit" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(UNIT_TIMEOUT_S))
