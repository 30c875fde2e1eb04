"""Verifiers and tools that behave or misbehave as an episode's data asks; served by the tests in processes of their own."""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import time
from pathlib import Path
from typing import Any

from burnish.envs.tools import ToolContext, ToolRejected, tool
from burnish.rewards.remote.service import verifier
from burnish.rewards.types import RewardInput, Score
from burnish.rpc.batches import cancelled

seen: contextvars.ContextVar[int] = contextvars.ContextVar("seen", default=0)


@verifier("test/puppet-v1")
async def puppet(episode: RewardInput) -> Any:
    """Does what data["do"] says."""
    data = episode.data
    match data.get("do", "score"):
        case "score":
            return Score(episode.env_reward, {"messages": len(episode.messages)}, {"expected": episode.task.id})
        case "raise":
            raise KeyError("verdict")
        case "fetch":  # what a client of somebody else's says when it fails
            raise RuntimeError(f"GET {data['url']} failed")
        case "nan":
            return float("nan")
        case "word":
            return "good"
        case "context":  # how often this context has been here
            seen.set(seen.get() + 1)
            return seen.get()
        case "sleep":
            Path(data["file"]).write_text("started")
            try:
                await asyncio.sleep(data["s"])
            except asyncio.CancelledError:
                Path(data["file"]).write_text("cancelled")
                raise
            return 1.0


@verifier("test/pid-v1")
async def pid(episode: RewardInput) -> float:
    """Says which process it runs in, after data["s"] seconds."""
    await asyncio.sleep(episode.data.get("s", 0))
    return float(os.getpid())


@verifier("test/sync-puppet-v1")
def sync_puppet(episode: RewardInput) -> float:
    """Works in small steps until told to stop."""
    if episode.data:
        file = Path(episode.data["file"])
        file.write_text("started")
        until = time.monotonic() + episode.data["s"]
        while time.monotonic() < until and not (episode.data.get("polite", True) and cancelled()):
            time.sleep(0.01)
        file.write_text("cancelled" if cancelled() else "finished")
    return episode.env_reward


@verifier("test/backtrack-v1", isolation="process")
def backtrack(episode: RewardInput) -> float:
    """Holds the GIL for longer than anybody waits, given an answer of many a and a b."""
    return float(re.match(r"(a+)+$", episode.messages[-1].text) is None)


@tool
def add(a: int, b: int, *, context: ToolContext) -> str:
    """Add two numbers."""
    return f"{a + b} for {context.episode_id} seed {context.seed} {dict(context.data)}"


@tool
async def wait(s: float) -> str:
    """Wait."""
    await asyncio.sleep(s)
    return "done"


@tool
def misbehave(how: str) -> str:
    """Fail as asked."""
    if how == "reject":
        raise ToolRejected("not with this part")
    raise OSError("gauge is unplugged")


class Counter:
    """Tools that count, for the length of an episode. data: "file" hears of what happens, "broken" cannot be opened."""

    def __init__(self, context: ToolContext) -> None:
        if "broken" in context.data:
            raise RuntimeError("no counter left")
        self.file = Path(context.data["file"])
        self.count = 0
        self._note(f"opened {context.episode_id}")

    @tool
    def press(self, s: float = 0.0) -> dict[str, int]:
        """Count one, and take s seconds."""
        self.count += 1
        self._note(f"pressed {self.count}")
        until = time.monotonic() + s
        while time.monotonic() < until and not cancelled():
            time.sleep(0.01)
        return {"count": self.count, "pid": os.getpid()}

    @tool
    async def read(self, *, context: ToolContext) -> str:
        """Say the count."""
        return f"{self.count} for {context.data.get('who', 'nobody')}"

    def close(self) -> None:
        self._note("closed")

    def _note(self, text: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{text}\n")
