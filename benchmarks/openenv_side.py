"""OpenEnv's server and client with an environment that does nothing; runs where `openenv` is installed, and burnish need not be.

`python -m benchmarks.openenv_side serve PORT async|sync`, `python -m benchmarks.openenv_side measure ADDRESS SESSIONS`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

import uvicorn
from benchmarks.measuring import TEXT, Measured, Step, measure
from openenv.core import GenericEnvClient  # type: ignore[import-not-found]
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app  # type: ignore[import-not-found]

SESSIONS = 4096
STEPS = 4096


class Say(Action):  # type: ignore[misc]
    text: str


class Said(Observation):  # type: ignore[misc]
    text: str


class SyncNothing(Environment[Say, Said, State]):  # type: ignore[misc]
    """Answers a text, in the thread that the server has for the session: what most environments for it do."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Said:
        return Said(text=TEXT)

    def step(self, action: Say, timeout_s: float | None = None, **kwargs: Any) -> Said:
        return Said(text=TEXT, reward=1.0)

    @property
    def state(self) -> State:
        return State()


class Nothing(SyncNothing):
    """Answers a text, on the server's event loop: the fastest that OpenEnv has."""

    async def reset_async(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Said:
        return Said(text=TEXT)

    async def step_async(self, action: Say, timeout_s: float | None = None, **kwargs: Any) -> Said:
        return Said(text=TEXT, reward=1.0)


HANDLERS = {"async": Nothing, "sync": SyncNothing}


async def measure_sessions(address: str, sessions: int) -> Measured:
    clients: list[Any] = []

    async def episode() -> Step:
        client = GenericEnvClient(base_url=f"http://{address}", connect_timeout_s=60.0)
        clients.append(client)
        await client.connect()
        await client.reset()

        async def step() -> float:
            result = await client.step({"text": TEXT})
            return float(result.reward) if result.observation["text"] == TEXT else 0.0

        return step

    try:
        return await measure(episode, sessions, STEPS)
    finally:
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        app = create_fastapi_app(HANDLERS[sys.argv[3]], Say, Said, max_concurrent_envs=SESSIONS)
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
    else:
        print(json.dumps(asdict(asyncio.run(measure_sessions(sys.argv[2], int(sys.argv[3]))))))
