"""What a regular expression that backtracks for ever costs the other rewards of a run: `pytest benchmarks/bench_isolation.py -m slow -s`.

It holds the interpreter's lock, so that no thread could be told to stop, nor anything else run beside it: `isolation = "process"`.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.registry import load_plugin
from burnish.envs.types import Message, Task
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLUGIN = """
import re
from burnish.rewards.plugin import reward

@reward("bench/only-a-v1", isolation="process", timeout_s=0.5)
def only_a(episode):
    return float(bool(re.fullmatch(r"(a+)+", episode.answer)))
"""
FAILS_WITHIN_S = 1.0
DELAYS_BY_S = 0.2


def said(text: str) -> RewardInput:
    return RewardInput("t/0", Task("t", 1), (Message("assistant", text),), 0.0)


async def test_a_catastrophic_expression_fails_in_under_a_second_and_delays_no_other_call(tmp_path: Path) -> None:
    (tmp_path / "only_a.py").write_text(PLUGIN)
    load_plugin(tmp_path / "only_a.py")
    scorer = make_scorer("bench/only-a-v1")
    for _ in range(2):  # the processes are there
        assert (await scorer.score(said("aa"))).value == 1.0

    async def catastrophe() -> float:
        began = time.monotonic()
        with pytest.raises(EpisodeFailure) as caught:
            await scorer.score(said("a" * 64 + "b"))
        assert caught.value.failure.kind == FailureKind.REWARD_TIMEOUT
        return time.monotonic() - began

    failing, others = asyncio.create_task(catastrophe()), list[float]()
    while not failing.done():
        began = time.monotonic()
        await scorer.score(said("aa"))
        others.append(time.monotonic() - began)
    print(f"\nfailed after {await failing:.2f} s; {len(others)} others: median {statistics.median(others):.4f} s, most {max(others):.3f} s")
    assert await failing < FAILS_WITHIN_S
    assert max(others) < DELAYS_BY_S
