"""Deadlines fire once, never early, and not after they were discarded."""

from __future__ import annotations

import asyncio

import pytest

from burnish.rpc.transport.deadlines import TICK_S, Deadlines

pytestmark = pytest.mark.unit


async def test_each_fires_in_its_own_time_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    fired: list[tuple[str, float]] = []
    start = loop.time()
    deadlines: Deadlines[str] = Deadlines(loop, lambda key: fired.append((key, loop.time() - start)))
    slots = {key: deadlines.add(key, start + after) for key, after in (("late", 0.3), ("soon", 0.1), ("never", 0.1), ("mid", 0.2))}
    deadlines.discard("never", slots["never"])
    deadlines.discard("unknown", 17)
    await asyncio.sleep(0.5)
    assert [key for key, _ in fired] == ["soon", "mid", "late"]
    assert all(at >= after for (_, at), after in zip(fired, (0.1, 0.2, 0.3), strict=True))


async def test_a_deadline_in_the_past_fires_at_the_next_tick() -> None:
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    deadlines: Deadlines[int] = Deadlines(loop, fired.append)
    deadlines.add(1, loop.time() - 5)
    await asyncio.sleep(3 * TICK_S)
    assert fired == [1]
    deadlines.add(2, loop.time() + 0.05)
    deadlines.close()
    await asyncio.sleep(0.1)
    assert fired == [1]
