"""Worker threads: when all of them work for callers who gave up, and when that is more than a moment."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from burnish.rpc import threads
from burnish.rpc.threads import Threads

pytestmark = pytest.mark.unit


def test_a_burst_of_callers_who_gave_up_is_waited_for_and_what_lasts_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: now[0]))  # not the event loop's

    async def run() -> None:
        pool, let_go = Threads(2), threading.Event()
        waiting = [asyncio.create_task(pool.run(let_go.wait, 60)) for _ in range(2)]
        while pool._jobs.qsize():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (pool.stuck, pool.able) == (2, True)
        now[0] += threads.STUCK_S
        assert not pool.able
        let_go.set()
        while pool.stuck:
            await asyncio.sleep(0.01)
        assert pool.able
        pool.close()

    asyncio.run(asyncio.wait_for(run(), 50))


async def test_a_pool_whose_threads_are_slow_to_end_is_closed_and_one_that_is_busy_is_not() -> None:
    """A machine under load may leave an idle thread no time to end."""
    pool, free, at_it = Threads(limit=2), threading.Event(), threading.Event()
    await pool.run(int, "1")
    assert pool.close(patience_s=0.0)

    def held() -> None:
        at_it.set()
        free.wait(60)

    pool = Threads(limit=2)
    task = asyncio.ensure_future(pool.run(held))
    await asyncio.to_thread(at_it.wait, 60)
    assert not pool.close(patience_s=0.0)
    free.set()
    await task
    assert pool.close(patience_s=60)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(3)])
def test_whatever_a_function_raises_its_caller_can_bear(error: BaseException) -> None:
    """The first two would end the event loop; the third looked as if the caller had given up, so that the thread counted as stuck."""

    def function() -> None:
        raise error

    async def run() -> None:
        pool = Threads(1)
        with pytest.raises(RuntimeError, match=f"the function raised {type(error).__name__}") as raised:
            await pool.run(function)
        assert raised.value.__cause__ is error
        assert (pool.stuck, await pool.run(int)) == (0, 0)
        pool.close()

    asyncio.run(asyncio.wait_for(run(), 50))
