"""While weights change nothing is sampled, and each token has the version of the weights that sampled it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import burnish.rollout.engine.vllm_inprocess as backend
from burnish.envs.failures import EpisodeFailure
from burnish.rollout.engine import EngineConfig
from burnish.rollout.engine.base import GenerateRequest, Generation
from burnish.rollout.engine.fake import ScriptedEngine
from burnish.rollout.engine.vllm_inprocess import InProcessEngine
from burnish.rollout.weights import snapshot, sync_weights

LONG = 1_000_000


def request(tokens: int = LONG) -> GenerateRequest:
    return GenerateRequest("t/0", [1], tokens, 1.0, ())


class Core:
    """What of vLLM's engine core is used. ahead: steps that it may sample before it takes in the first, as asynchronous scheduling does."""

    def __init__(self, ahead: int) -> None:
        self.ahead, self.version, self.paused = ahead, "0", False
        self.batch_queue: deque[tuple[int, int]] | None = deque() if ahead else None
        self.engine_core = self  # the client in the same process holds it by this name

    def set_weight_version(self, version: str) -> None:
        self.version = version

    def pause_scheduler(self, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", False)
        self.paused = True

    def resume_scheduler(self) -> None:
        self.paused = False

    def shutdown(self) -> None:
        """There is nothing to end."""


class LLM:
    """vLLM's `LLMEngine` with one weight, "the number of the load": each token that it gives is that of the weights that sampled it."""

    def __init__(self, ahead: int) -> None:
        self.engine_core = Core(ahead)
        self.output_processor = SimpleNamespace(process_outputs=lambda outputs, *rest: None)
        self.vllm_config = SimpleNamespace(model_config=None)
        self.loads, self.cache_of = 0, 0
        self.asked: dict[str, int] = {}
        self.tokens: dict[str, list[tuple[int, int, int]]] = {}  # weights, cache and label of each

    def has_unfinished_requests(self) -> bool:
        return bool(self.asked)

    def add_request(self, name: str, inputs: int, params: None) -> None:
        self.asked[name], self.tokens[name] = inputs, []

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.asked.pop(name, None)

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        self.cache_of = self.loads
        return True

    def collective_rpc(self, name: str, kwargs: Mapping[str, Any]) -> None:
        assert name == "reload_weights" and len(list(kwargs["weights_iterator"])) == 1
        self.loads += 1

    def step(self) -> list[Any]:
        time.sleep(0.0002)
        core = self.engine_core
        sampled = (self.loads, self.cache_of)
        taken_in = []
        if core.batch_queue is None:
            taken_in = [sampled]
        else:
            if not core.paused:
                core.batch_queue.append(sampled)
            if core.paused or len(core.batch_queue) > core.ahead:
                taken_in = [core.batch_queue.popleft()]
        ended = []
        for by, cache in taken_in:
            for name in list(self.asked):
                self.tokens[name].append((by, cache, int(core.version)))
                if len(self.tokens[name]) == self.asked[name]:
                    del self.asked[name]
                    ended.append(SimpleNamespace(finished=True, request_id=name))
        return ended


@pytest.fixture(params=[0, 1], ids=["step by step", "a step ahead"])
def llm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LLM:
    llm = LLM(request.param)
    monkeypatch.setattr(backend, "_build", lambda config, path: llm)
    monkeypatch.setattr(backend, "sampling_params", lambda request: None)
    monkeypatch.setattr(backend, "as_tensor", lambda array: array)
    monkeypatch.setattr(backend, "prepare_process", lambda config: None)
    monkeypatch.setattr(InProcessEngine, "_inputs", lambda self, request: request.max_tokens)
    monkeypatch.setattr(InProcessEngine, "_learn_model", learn_model)
    monkeypatch.setattr(InProcessEngine, "_generation", lambda self, request, output, seconds: output)
    return llm


def learn_model(engine: InProcessEngine, model_config: None) -> None:
    engine._vocab_size, engine._expected = 100, {"w": (1,)}


@pytest.fixture
def engine(llm: LLM, tmp_path: Path) -> Any:
    (tmp_path / "config.json").write_text("{}")
    started = InProcessEngine(EngineConfig(max_context=2 * LONG), tmp_path, "e0")
    yield started
    asyncio.run(started.close())


async def sampled(llm: LLM, tokens: int) -> list[tuple[int, int, int]]:
    """Those of the request under way, once there are so many."""
    while True:
        found = [given for name, given in list(llm.tokens.items()) if name.startswith("t/0")]
        if found and len(found[0]) >= tokens:
            return found[0]
        await asyncio.sleep(0)


async def test_between_a_pause_and_the_resuming_vllm_is_not_stepped(engine: InProcessEngine, llm: LLM) -> None:
    """Before, it was stepped between what loads and what adopts: under new weights, on the old cache, labelled as the old ones."""
    answer = asyncio.ensure_future(engine.generate(request()))
    tokens = await sampled(llm, 3)
    await engine.pause_generation(finish=False)
    before = list(tokens)
    await engine.start_weight_update({"w": (1,)})
    await engine.update_weights([("w", np.zeros(1, np.float32))])
    for _ in range(3):
        await engine._call(lambda llm: None)  # the thread takes commands
    await engine.finish_weight_update(7)
    await engine._call(lambda llm: None)
    assert tokens == before
    await engine.resume_generation()
    tokens = await sampled(llm, len(before) + 2)
    assert set(before) == {(0, 0, 0)} and set(tokens[len(before) :]) == {(1, 1, 7)}
    answer.cancel()


async def test_each_token_has_the_version_of_the_weights_that_sampled_it(engine: InProcessEngine, llm: LLM) -> None:
    answer = asyncio.ensure_future(engine.generate(request()))
    for number in range(1, 6):
        before = await sampled(llm, 5 * number)
        await sync_weights(engine, snapshot(number, {"w": np.zeros(1, np.float32)}), finish=False)
        await sampled(llm, len(before) + 5)
    answer.cancel()
    assert set(await sampled(llm, 1)) == {(number, number, number) for number in range(6)}


async def test_whoever_leaves_and_whoever_comes_meanwhile_is_served(engine: InProcessEngine, llm: LLM) -> None:
    leaving = asyncio.ensure_future(engine.generate(request()))
    await sampled(llm, 3)
    await engine.pause_generation(finish=False)
    leaving.cancel()
    assert isinstance((await asyncio.gather(leaving, return_exceptions=True))[0], asyncio.CancelledError)
    coming = asyncio.ensure_future(engine.generate(request(3)))
    await engine._call(lambda llm: None)
    assert not llm.asked and not coming.done()
    await engine.start_weight_update({"w": (1,)})
    await engine.update_weights([("w", np.zeros(1, np.float32))])
    await engine.finish_weight_update(7)
    await engine.resume_generation()
    await coming


async def test_an_engine_that_stands_still_can_be_closed(engine: InProcessEngine, llm: LLM) -> None:
    answer = asyncio.ensure_future(engine.generate(request()))
    await sampled(llm, 3)
    await engine.pause_generation(finish=False)
    await engine.close()
    assert "the engine was closed" in str((await asyncio.gather(answer, return_exceptions=True))[0])


async def test_new_weights_wait_for_an_answer_as_long_as_its_tokens_come() -> None:
    """For five times what an engine may be silent, and weights may hold a request. Who comes meanwhile waits too, and is not failed."""
    engine = ScriptedEngine(lambda asked: [5] * asked.max_tokens, timeout_s=0.4)
    engine.token_s = 0.02
    slow = asyncio.ensure_future(engine.generate(request(100)))
    while not engine.requests:
        await asyncio.sleep(0)
    taking = asyncio.ensure_future(sync_weights(engine, snapshot(7, {}), finish=True))
    await asyncio.sleep(0)
    late = asyncio.ensure_future(engine.generate(request(2)))
    assert (await taking).drain_s > 1.5 and slow.done()
    assert set((await slow).policy_version.tolist()) == {0} and set((await late).policy_version.tolist()) == {7}


async def test_an_engine_that_samples_nothing_while_it_should_end_its_answers_hangs() -> None:
    engine = ScriptedEngine(lambda asked: [5] * asked.max_tokens, timeout_s=60.0)
    engine.hang()
    waiting = asyncio.ensure_future(engine.generate(request(4)))
    while not engine.requests:
        await asyncio.sleep(0)
    with pytest.raises(EpisodeFailure, match=r"1 requests still in flight, and no token sampled for any of them for 0\.1 s"):
        await engine._gate.pause(0.1)
    waiting.cancel()


async def synced(engine: ScriptedEngine, finish: bool) -> Generation:
    """An answer in the middle of which new weights come; they are not there before its time has passed."""
    answer = asyncio.ensure_future(engine.generate(request(4)))
    while not engine.requests:
        await asyncio.sleep(0)
    await engine.pause_generation(finish)
    if not finish:
        await asyncio.wait([answer], timeout=0.05)
        assert not answer.done()
    await sync_weights(engine, snapshot(7, {}), finish)
    return await answer


@pytest.mark.parametrize("token_s", [0.0, 0.001])
async def test_a_scripted_answer_stands_still_too_and_ends_first_where_that_is_asked(token_s: float) -> None:
    engine = ScriptedEngine([[5, 6, 7, 8]], delay_s=0.01)
    engine.token_s = token_s
    assert (await synced(engine, finish=False)).policy_version.tolist() == [7, 7, 7, 7]
    engine = ScriptedEngine([[5, 6, 7, 8]], delay_s=0.01, timeout_s=20.0)
    engine.token_s = token_s
    assert (await synced(engine, finish=True)).policy_version.tolist() == [0, 0, 0, 0]
