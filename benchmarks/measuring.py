"""What the clients of `bench_services.py` share: episodes that make one step after the other, and what that measures.

Plain Python: it also runs where burnish is not installed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

TEXT = ("Inspect part 17: the bore is 12.04 mm, the limit 12.05 mm, so it passes; the flange is 3.98 mm. " * 3)[:230]
WARM_UP = 20  # steps
OPENING = 32  # episodes that are opened at a time

Step = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """rate: right steps per second. p50, p99: milliseconds of a step. lost: steps without the right answer. error: of the first of them."""

    rate: float
    p50: float
    p99: float
    lost: int
    error: str = ""


def measured(seconds: Sequence[float], took: float, lost: int, error: str = "") -> Measured:
    """seconds: of every step. took: of all of them together."""
    cuts = statistics.quantiles(seconds, n=100)
    return Measured((len(seconds) - lost) / took, cuts[49] * 1e3, cuts[98] * 1e3, lost, error)


async def measure(open_episode: Callable[[], Awaitable[Step]], episodes: int, steps: int) -> Measured:
    """Make `steps` in all, in `episodes` at a time that each wait for one step before the next. A right step is worth 1.0."""
    seconds: list[float] = []
    errors: list[str] = []
    turn = asyncio.Semaphore(OPENING)

    async def opened() -> Step:
        async with turn:
            return await open_episode()

    async def episode(step: Step) -> None:
        for _ in range(steps // episodes):
            begin = time.perf_counter()
            try:
                if (value := await step()) != 1.0:
                    errors.append(f"the step was worth {value!r}")
            except Exception as error:  # counted, shown, and the benchmark fails with it
                errors.append(f"{type(error).__name__}: {error}")
            seconds.append(time.perf_counter() - begin)

    ready = await asyncio.gather(*(opened() for _ in range(episodes)))
    for _ in range(WARM_UP):
        await ready[0]()
    begin = time.perf_counter()
    await asyncio.gather(*(episode(step) for step in ready))
    return measured(seconds, time.perf_counter() - begin, len(errors), errors[0] if errors else "")
