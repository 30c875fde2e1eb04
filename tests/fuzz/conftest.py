"""How many inputs the fuzz tests make up, all of them together: 500 in `make test`, always the same; 10,000 new ones in `make fuzz`."""

from __future__ import annotations

import math
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

QUICK, THOROUGH = "fuzz-quick", "fuzz"
EXAMPLES = {QUICK: 500, THOROUGH: 10_000}
TESTS = sum(file.read_text().count("\n@given(") for file in Path(__file__).parent.glob("test_*.py"))
DEADLINE = timedelta(seconds=20)
"""For one input: none takes more than milliseconds, on a machine that does nothing else."""

for name, total in EXAMPLES.items():
    settings.register_profile(
        name,
        max_examples=math.ceil(total / TESTS),
        deadline=DEADLINE,
        derandomize=name == QUICK,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A test takes the profile that holds when its module is imported; this one holds for the modules of this folder only."""
    before = settings.get_current_profile_name()
    settings.load_profile(THOROUGH if before == THOROUGH else QUICK)
    try:
        return (yield)
    finally:
        settings.load_profile(before)
