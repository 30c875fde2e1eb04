"""Unit tests run on event loops whose clock does not depend on how busy the machine is, and share what is costly to make."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hypothesis import settings
from tests.unit.clock import PatientLoop, PatientLoops
from typer.main import get_command

settings.register_profile("unit", deadline=None)  # how long an input takes is the machine's
settings.load_profile("unit")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"patient": PatientLoop}


@pytest.fixture(autouse=True)
def patient_loops() -> Iterator[None]:
    """`asyncio.run` too."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(PatientLoops())
    yield
    asyncio.set_event_loop_policy(before)


@pytest.fixture(autouse=True, scope="session")
def commands() -> Iterator[None]:
    """The tree of commands is the same for every `CliRunner`; making it takes longer than most of the commands do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True, scope="module")
def subnormals() -> Iterator[None]:
    """A learner takes numbers too small for a normal float as zero, in its whole process; the tests of other files share this one."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
