"""Unit tests run on event loops whose clock does not depend on how busy the machine is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator

import pytest
from tests.unit.clock import PatientLoop, PatientLoops


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"patient": PatientLoop}


@pytest.fixture(autouse=True)
def patient_loops() -> Iterator[None]:
    """`asyncio.run` too."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(PatientLoops())
    yield
    asyncio.set_event_loop_policy(before)


@pytest.fixture(autouse=True, scope="module")
def subnormals() -> Iterator[None]:
    """A learner takes numbers too small for a normal float as zero, in its whole process; the tests of other files share this one."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
