"""The clients of `bench_services.py`, one per run: `python -m benchmarks.service_clients KIND ADDRESS EPISODES`.

Each has a process of its own: event loops in one process would share gRPC's poller, and slow each other down.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import grpc
from benchmarks.measuring import TEXT, Measured, Step, measure, measured

from burnish.envs.remote.env import RemoteEnv
from burnish.envs.types import Message, Task
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.wire import to_request
from burnish.rewards.types import RewardInput
from burnish.rpc.client import BatchedClient
from burnish.rpc.methods import EPISODE
from burnish.v1 import common_pb2, environment_pb2, verifier_pb2, verifier_pb2_grpc

ECHO = "/burnish.bench.Echo/Stream"
STEPS = 32_768  # of one measurement
SLOW_STEPS = 4096
DEADLINE_S = 60.0
JUDGED = RewardInput("bench-0/0", Task("bench-0", 0), (Message("assistant", TEXT),), 1.0)


class BareEcho:
    """The client of the echo: one stream, whatever is ready travels together, and nothing else."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        open_stream: Any = channel.stream_stream(
            ECHO,
            request_serializer=verifier_pb2.VerifyStreamRequest.SerializeToString,
            response_deserializer=verifier_pb2.VerifyStreamResponse.FromString,
        )
        self._call = open_stream()
        self._ids = itertools.count()
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._outbox: list[verifier_pb2.VerifyItem] = []
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def step(self) -> float:
        """One request of one message, made for this step, and the number in its answer."""
        request_id = str(next(self._ids))
        answer = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        message = common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, text=TEXT)
        request = verifier_pb2.VerifyRequest(episode_id="bench-0/0", task=common_pb2.Task(id="bench-0"), messages=[message], env_reward=1.0)
        self._outbox.append(verifier_pb2.VerifyItem(request_id=request_id, request=request))
        self._wake.set()
        return await answer

    def close(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)
            batch, self._outbox = self._outbox, []
            await self._call.write(verifier_pb2.VerifyStreamRequest(items=batch))

    async def _read(self) -> None:
        async for message in self._call:
            for result in message.results:
                self._waiting.pop(result.request_id).set_result(result.response.score)


async def echo(address: str, episodes: int) -> Measured:
    async with grpc.aio.insecure_channel(address, options=(("grpc.max_receive_message_length", -1),)) as channel:
        bare = BareEcho(channel)

        async def episode() -> Step:
            return bare.step

        try:
            return await measure(episode, episodes, STEPS)
        finally:
            bare.close()


async def stream(address: str, episodes: int) -> Measured:
    remote = RemoteVerifier("nothing", address, deadline_s=DEADLINE_S)

    async def step() -> float:
        return (await remote.score(JUDGED)).value

    async def episode() -> Step:
        return step

    return await measure(episode, episodes, STEPS)


async def unary(address: str, episodes: int) -> Measured:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)

        async def step() -> float:
            return (await stub.Verify(to_request(JUDGED), timeout=DEADLINE_S)).score

        async def episode() -> Step:
            return step

        return await measure(episode, episodes, SLOW_STEPS)


async def env(address: str, episodes: int) -> Measured:
    """Environment steps as `RemoteEnv` sends them, from one event loop. An answer without its text is worth nothing."""
    client = BatchedClient(address, EPISODE)
    sessions: list[str] = []

    async def episode() -> Step:
        session, steps = uuid.uuid4().hex, itertools.count()
        sessions.append(session)
        reset = environment_pb2.EpisodeRequest(reset=environment_pb2.ResetRequest(episode_id=session, seed=0))
        assert (await client.call(reset, DEADLINE_S)).reset.messages[0].text == TEXT

        async def step() -> float:
            request = environment_pb2.EpisodeRequest(step=environment_pb2.StepRequest(episode_id=session, step_id=next(steps), action=TEXT))
            answer = (await client.call(request, DEADLINE_S)).step
            return answer.reward if answer.messages[0].text == TEXT else 0.0

        return step

    try:
        return await measure(episode, episodes, STEPS)
    finally:
        closes = [environment_pb2.EpisodeRequest(close=environment_pb2.CloseRequest(episode_id=session)) for session in sessions]
        await asyncio.gather(*(client.call(close, DEADLINE_S) for close in closes))


async def env_threads(address: str, episodes: int) -> Measured:
    """`RemoteEnv`, a thread for each, as rollouts use it."""
    envs = [RemoteEnv(address, deadline_s=DEADLINE_S) for _ in range(episodes)]

    def play(one: RemoteEnv) -> list[tuple[float, bool]]:
        steps = []
        for _ in range(SLOW_STEPS // episodes):
            begin = time.perf_counter()
            messages, reward, *_ = one.step(TEXT)
            steps.append((time.perf_counter() - begin, reward == 1.0 and messages[0].text == TEXT))
        return steps

    with ThreadPoolExecutor(episodes) as threads:
        list(threads.map(lambda one: one.reset(seed=0), envs))
        begin = time.perf_counter()
        steps = [step for played in threads.map(play, envs) for step in played]
        took = time.perf_counter() - begin
        list(threads.map(lambda one: one.close(), envs))
    return measured([seconds for seconds, _ in steps], took, sum(not right for _, right in steps))


CLIENTS = {"echo": echo, "stream": stream, "unary": unary, "env": env, "env_threads": env_threads}

if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(CLIENTS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))))
