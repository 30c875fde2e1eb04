"""Both vLLM engines keep one contract: right probabilities, true version tags, whole weight updates, clean ends."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.listening import listeners_beyond_loopback

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.rollout.engine import Engine, EngineConfig, make_engine
from burnish.rollout.engine.base import GenerateRequest, Generation, OutOfTime
from burnish.rollout.weights import PARITY_BOUNDS, SyncProofError, WeightSnapshot, check_parity, snapshot, sync_weights

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

MAX_CONTEXT = 256
PROMPT = [7, 20, 33, 41, 5, 90, 12, 61] * 8  # two KV blocks of 32, so that its prefix is cached


@pytest.fixture(scope="module")
def reference(engine: Engine, tiny_model: Path) -> Any:
    """The same model in transformers: the learner's part. A fresh one for each engine."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module", params=["vllm-inprocess", "vllm-async"])
def engine(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One engine per backend for the whole module; the last test of the module kills it."""
    with pytest.MonkeyPatch.context() as patch:
        outward = next((name for _, name in socket.if_nameindex() if not name.startswith("lo")), "lo")
        patch.setenv("GLOO_SOCKET_IFNAME", outward)  # as an environment may say that is made for something else
        started = make_engine(config_of(request.param, tmp_path_factory.mktemp("logs") / "vllm.log"), tiny_model, "engine-under-test")
        yield started
        asyncio.run(started.close())


def config_of(backend: Any, log: Path) -> EngineConfig:
    return EngineConfig(
        backend=backend,
        max_context=MAX_CONTEXT,
        kv_cache_mb=64,
        max_num_seqs=16,
        request_timeout_s=60,
        drain_timeout_s=60,
        update_timeout_s=60,
        log_file=log,
    )


def new_weights(reference: Any, version: int) -> WeightSnapshot:
    """A whole set of weights, far from any other version's, set on the reference model as well."""
    import torch

    random = np.random.default_rng(version)
    tensors = {}
    for name, tensor in reference.named_parameters():
        noise = random.standard_normal(tensor.shape).astype(np.float32)
        tensors[name] = 1 + 0.1 * noise if "norm" in name else 0.2 * noise
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    reference.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return snapshot(version, tensors)


def request(prompt: list[int] | None = None, *, max_tokens: int = 24, temperature: float = 1.0, seed: int = 0) -> GenerateRequest:
    return GenerateRequest(f"task/{seed}", prompt or PROMPT, max_tokens, temperature, stop_token_ids=(), seed=seed)


def reference_logprobs(reference: Any, prompt: list[int], generation: Generation, temperature: float = 1.0) -> np.ndarray:
    import torch

    ids = torch.tensor([[*prompt, *generation.token_ids.tolist()]])
    with torch.no_grad():
        logits = reference(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def forward_logprobs(reference: Any, ids: list[int]) -> np.ndarray:
    import torch

    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = reference(tokens).logits[0, :-1]
    return torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])[:, 0].numpy()


def test_an_engine_listens_on_loopback_alone(engine: Engine) -> None:
    """What its processes say to each other passes no authentication: gloo's, nccl's and vLLM's sockets have none."""
    with socket.create_server(("0.0.0.0", 0)):
        assert len(listeners_beyond_loopback(os.getpid())) > 0, "the test sees them"
    assert listeners_beyond_loopback(os.getpid()) == []


async def test_logprobs_are_those_of_the_checkpoint(engine: Engine, reference: Any) -> None:
    generation = await engine.generate(request())
    assert len(generation.token_ids) == 24
    assert generation.stop_reason == "length"
    check_parity(engine.name, 0, reference_logprobs(reference, PROMPT, generation), generation.logprobs, generation.policy_version)


async def test_logprobs_and_version_follow_a_weight_update(engine: Engine, reference: Any) -> None:
    before = await engine.generate(request())
    receipt = await sync_weights(engine, new_weights(reference, 1))
    assert (receipt.version, receipt.tensors, engine.weight_version) == (1, 21, 1)
    prompts = [[*PROMPT, i + 10] for i in range(12)]
    generations = await asyncio.gather(*(engine.generate(request(prompt, seed=i)) for i, prompt in enumerate(prompts)))
    for prompt, generation in zip(prompts, generations, strict=True):
        proof = check_parity(
            engine.name, 1, reference_logprobs(reference, prompt, generation), generation.logprobs, generation.policy_version
        )
        assert proof.tokens == 24
    assert before.policy_version.tolist() == [0] * 24


async def test_temperature_is_part_of_the_distribution(engine: Engine, reference: Any) -> None:
    await sync_weights(engine, new_weights(reference, 2))
    for temperature in (0.7, 1.5):
        generation = await engine.generate(request(temperature=temperature))
        expected = reference_logprobs(reference, PROMPT, generation, temperature)
        bound = PARITY_BOUNDS["float32"].at(temperature)
        check_parity(engine.name, 2, expected, generation.logprobs, generation.policy_version, bound)


async def test_greedy_takes_the_most_likely_token(engine: Engine, reference: Any) -> None:
    import torch

    await sync_weights(engine, new_weights(reference, 3))
    generation = await engine.generate(request(max_tokens=1, temperature=0.0))
    with torch.no_grad():
        assert generation.token_ids[0] == int(reference(torch.tensor([PROMPT])).logits[0, -1].argmax())


async def test_same_seed_same_tokens(engine: Engine) -> None:
    first, again, other = [await engine.generate(request(seed=seed)) for seed in (5, 5, 6)]
    assert first.token_ids.tolist() == again.token_ids.tolist() != other.token_ids.tolist()


async def test_a_stop_token_ends_the_answer_and_is_part_of_it(engine: Engine) -> None:
    free = await engine.generate(request(seed=9))
    stop = int(free.token_ids[3])
    first = free.token_ids.tolist().index(stop)
    stopped = await engine.generate(dataclasses.replace(request(seed=9), stop_token_ids=(stop,)))
    assert stopped.stop_reason == "stop"
    assert stopped.token_ids.tolist() == free.token_ids.tolist()[: first + 1]
    assert len(stopped.logprobs) == len(stopped.policy_version) == first + 1


async def test_more_prompt_tokens_than_one_step_computes(engine: Engine) -> None:
    """A seeded request whose prompt vLLM computes in two steps would end the engine on CPU."""
    prompts = [[(i * 31 + t * 7) % 200 + 10 for t in range(150)] for i in range(32)]
    generations = await asyncio.gather(*(engine.generate(request(prompt, seed=i)) for i, prompt in enumerate(prompts)))
    assert [len(generation.token_ids) for generation in generations] == [24] * 32


async def test_only_the_given_tokens_stop(engine: Engine, tiny_model: Path, reference: Any) -> None:
    """The model's own end-of-text token is an ordinary token unless the request says otherwise."""
    weights = dict(new_weights(reference, 4).tensors)
    eos = reference.config.eos_token_id
    embedding = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"] = embedding
    head = 0.01 * embedding
    head[eos] = 0.0
    await sync_weights(engine, snapshot(4, weights | {"lm_head.weight": head}))
    generation = await engine.generate(request(max_tokens=128))
    assert len(generation.token_ids) == 128


async def test_the_prefix_cache_forgets_old_weights(engine: Engine, reference: Any) -> None:
    await sync_weights(engine, new_weights(reference, 5))
    for seed in range(2):
        await engine.generate(request(seed=seed))  # the second takes the prompt from the cache
    await sync_weights(engine, new_weights(reference, 6))
    generation = await engine.generate(request())
    check_parity(engine.name, 6, reference_logprobs(reference, PROMPT, generation), generation.logprobs, generation.policy_version)


async def test_requests_during_an_update_wait_for_the_new_weights(engine: Engine, reference: Any) -> None:
    weights = new_weights(reference, 7)
    running = [asyncio.create_task(engine.generate(request(max_tokens=64, seed=i))) for i in range(4)]
    await asyncio.sleep(0)
    sync = asyncio.create_task(sync_weights(engine, weights))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(engine.generate(request(seed=i))) for i in range(4)]
    await sync
    assert {int(v) for task in running for v in (await task).policy_version} == {6}
    for generation in [await task for task in waiting]:
        check_parity(engine.name, 7, reference_logprobs(reference, PROMPT, generation), generation.logprobs, generation.policy_version)


async def split_by(engine: Engine, reference: Any, max_tokens: int = 150) -> tuple[list[list[int]], list[Generation], Any]:
    """Answers that were under way when the engine took new weights, their prompts, and the model with the weights before. The reference has
    the new ones. How long to wait for that depends on the machine; each try has weights of its own."""
    wait_s = 0.2
    for version in range(engine.weight_version + 1, engine.weight_version + 13):
        older = deepcopy(reference)
        weights = new_weights(reference, version)
        prompts = [[*PROMPT, i + 10] for i in range(8)]
        answers = [asyncio.ensure_future(engine.generate(request(p, max_tokens=max_tokens, seed=i))) for i, p in enumerate(prompts)]
        await asyncio.sleep(wait_s)
        receipt = await sync_weights(engine, weights, finish=False)
        generations = await asyncio.gather(*answers)
        assert receipt.version == engine.weight_version == weights.version
        sampled_by = [set(one.policy_version.tolist()) for one in generations]
        if any(len(versions) == 2 for versions in sampled_by):
            return prompts, generations, older
        ended = all(versions != {weights.version} for versions in sampled_by)
        wait_s = wait_s / 2 if ended else wait_s * 2
    raise AssertionError("no answer was under way when new weights came")


async def test_answers_under_way_go_on_under_new_weights_as_these_would_have_them(engine: Engine, reference: Any) -> None:
    await sync_weights(engine, new_weights(reference, 20))
    prompts, generations, older = await split_by(engine, reference)
    for prompt, generation in zip(prompts, generations, strict=True):
        assert len(generation.token_ids) == 150 and (np.diff(generation.policy_version) >= 0).all()
        newest = generation.policy_version == engine.weight_version
        if newest.any():  # on a context that was computed again, tokens of the older weights included
            ours = reference_logprobs(reference, prompt, generation)[newest]
            check_parity(engine.name, engine.weight_version, ours, generation.logprobs[newest], generation.policy_version[newest])
        first = generation.policy_version == engine.weight_version - 1
        if first.any():  # to the last token before they stood still
            theirs = reference_logprobs(older, prompt, generation)[first]
            check_parity(engine.name, engine.weight_version - 1, theirs, generation.logprobs[first], generation.policy_version[first])
            assert np.abs(theirs - generation.logprobs[first]).max() < 1e-3
    after = await engine.generate(request(prompts[0]))
    check_parity(engine.name, engine.weight_version, reference_logprobs(reference, prompts[0], after), after.logprobs, after.policy_version)


async def test_cancelling_frees_the_request_inside_the_engine(engine: Engine, reference: Any) -> None:
    tasks = [asyncio.create_task(engine.generate(request(max_tokens=MAX_CONTEXT - len(PROMPT), seed=i))) for i in range(8)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    await sync_weights(engine, new_weights(reference, 8))  # refused by the cache while a block is in use
    assert len((await engine.generate(request())).token_ids) == 24


async def test_an_engine_serves_one_event_loop_after_another(engine: Engine) -> None:
    def on_a_new_loop() -> Generation:
        return asyncio.run(engine.generate(request()))

    assert len((await asyncio.to_thread(on_a_new_loop)).token_ids) == 24


async def test_a_missing_tensor_is_refused_and_a_whole_update_repairs(engine: Engine, reference: Any) -> None:
    whole = new_weights(reference, 9)
    part = {name: array for name, array in whole.tensors.items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"engine-under-test.*20 tensors announced, 21 expected \(missing lm_head\.weight\)"):
        await sync_weights(engine, snapshot(9, part))
    with pytest.raises(EpisodeFailure, match=r"engine_error in engine-under-test.*lm_head"):
        await engine.generate(request())
    assert engine.weight_version == 8
    await sync_weights(engine, whole)
    generation = await engine.generate(request())
    check_parity(engine.name, 9, reference_logprobs(reference, PROMPT, generation), generation.logprobs, generation.policy_version)


async def test_a_misshapen_or_unknown_tensor_is_refused(engine: Engine, reference: Any) -> None:
    whole = new_weights(reference, 10)
    norm = whole.tensors["model.norm.weight"]
    with pytest.raises(ValueError, match=r"wrong shape model\.norm\.weight \(32,\) for \(64,\)"):
        await sync_weights(engine, snapshot(10, {**whole.tensors, "model.norm.weight": norm[:32]}))
    with pytest.raises(ValueError, match=r"unknown extra\.weight"):
        await sync_weights(engine, snapshot(10, {**whole.tensors, "extra.weight": norm}))
    await sync_weights(engine, whole)


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight", "lm_head.weight"])
async def test_a_tensor_lost_inside_the_engine_breaks_parity(
    engine: Engine, reference: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    old = new_weights(reference, 11)
    await sync_weights(engine, old)
    load = engine._load  # type: ignore[attr-defined]

    def load_with_a_stale_tensor(tensors: Iterable[tuple[str, np.ndarray]]) -> Any:
        return load((name, old.tensors[name] if name == lost else array) for name, array in tensors)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_load", load_with_a_stale_tensor)
        with pytest.raises(SyncProofError, match=f"version 12 were not loaded as the learner sent them .changed {lost}"):
            await sync_weights(engine, new_weights(reference, 12))
    with pytest.raises(EpisodeFailure, match=f"engine_error in engine-under-test.*{lost}"):
        await engine.generate(request())
    await sync_weights(engine, new_weights(reference, 12))


async def test_the_probe_tells_equal_weights_from_stale_ones(engine: Engine, reference: Any) -> None:
    """`score` is what a Hugging Face forward pass gives; a sync that the engine only claims to have made is found by it."""
    weights = new_weights(reference, 20)
    await sync_weights(engine, weights)
    sequences = [PROMPT, PROMPT[::-1][:20]]
    for scored, ids in zip(await engine.score(sequences), sequences, strict=True):
        expected = forward_logprobs(reference, ids)
        versions = np.full(len(expected), 20, np.int32)
        assert check_parity(engine.name, 20, expected, scored, versions).tokens == len(ids) - 1
    new_weights(reference, 21)  # the learner goes on alone
    (scored, _), versions = await engine.score(sequences), np.full(len(PROMPT) - 1, 20, np.int32)
    with pytest.raises(SyncProofError, match="computes with other weights than those trained"):
        check_parity(engine.name, 20, forward_logprobs(reference, PROMPT), scored, versions)


async def test_a_skipped_sync_is_noticed_by_the_tags_and_by_the_numbers(engine: Engine, reference: Any) -> None:
    await sync_weights(engine, new_weights(reference, 13))
    new_weights(reference, 14)  # the learner goes on alone
    generation = await engine.generate(request())
    expected = reference_logprobs(reference, PROMPT, generation)
    with pytest.raises(SyncProofError, match="24 of 24 tokens were sampled by version 13 and not by 14"):
        check_parity(engine.name, 14, expected, generation.logprobs, generation.policy_version)
    with pytest.raises(SyncProofError, match="differ from the learner's"):
        check_parity(engine.name, 14, expected, generation.logprobs, np.full(24, 14, np.int32))


async def test_requests_that_cannot_be_served_are_refused_by_name(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"request task/0: 64 prompt tokens and max_tokens 200 do not fit in 256"):
        await engine.generate(request(max_tokens=200))
    with pytest.raises(ValueError, match="token ids must lie in"):
        await engine.generate(request([1, 10_000]))
    with pytest.raises(ValueError, match="temperature -1"):
        await engine.generate(request(temperature=-1.0))


async def test_an_engine_that_samples_on_is_only_slow(engine: Engine) -> None:
    with pytest.raises(OutOfTime):
        await engine.generate(dataclasses.replace(request(max_tokens=150), max_seconds=0.001))
    assert len((await engine.generate(request())).token_ids) == 24


@pytest.mark.parametrize("max_seconds", [0.001, math.inf], ids=["whose time is over", "with time left"])
async def test_an_engine_that_stands_still_in_the_middle_of_an_answer_hangs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, max_seconds: float
) -> None:
    gate = engine._gate  # type: ignore[attr-defined]
    monkeypatch.setattr(gate, "silent_s", 2.0)
    asked, before = dataclasses.replace(request(max_tokens=190), max_seconds=max_seconds), gate.tokens
    other = asyncio.ensure_future(engine.generate(request(max_tokens=190)))
    async with asyncio.timeout(60):
        while gate.tokens == before:
            await asyncio.sleep(0)
    with standing_still(engine):
        assert not other.done(), "tokens are counted as they are sampled"
        ends = await asyncio.gather(other, engine.generate(asked), return_exceptions=True)
    assert [str(end) for end in ends] == ["engine_timeout in engine-under-test: no token sampled for 2 s, for any request"] * 2
    assert len((await engine.generate(request())).token_ids) == 24


@contextmanager
def standing_still(engine: Any) -> Iterator[None]:
    """What generates does nothing: the thread waits, the process is stopped."""
    if not hasattr(engine, "_llm"):
        from burnish.rollout.engine.vllm_inprocess import _Call

        stands, go_on = threading.Event(), threading.Event()

        def wait(llm: Any) -> None:
            stands.set()
            go_on.wait(60)

        engine._put(_Call(wait, Future()))
        assert stands.wait(60)
        try:
            yield
        finally:
            go_on.set()
        return
    processes = [process.pid for process in engine._llm.engine_core.resources.engine_manager.processes]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


async def test_a_dead_engine_fails_everything_by_name(engine: Engine) -> None:
    """The last test of the module: it ends the engine."""
    running = [asyncio.create_task(engine.generate(request(max_tokens=190, seed=i))) for i in range(8)]
    await asyncio.sleep(0.02)
    kill(engine)
    ends = await asyncio.gather(*running, return_exceptions=True)
    failures = [end for end in ends if isinstance(end, EpisodeFailure)]
    assert failures == ends
    assert {(end.failure.kind, end.failure.culprit) for end in failures} == {(FailureKind.ENGINE_LOST, "engine-under-test")}
    with pytest.raises(EpisodeFailure, match="engine_lost in engine-under-test"):
        await engine.generate(request())


def kill(engine: Any) -> None:
    """End what generates: the thread by an exception, the process by a signal."""
    if not hasattr(engine, "_llm"):
        from burnish.rollout.engine.vllm_inprocess import _Call

        def crash(llm: Any) -> None:
            raise MemoryError("scripted crash")

        engine._put(_Call(crash, Future()))
        return
    for process in engine._llm.engine_core.resources.engine_manager.processes:
        os.kill(process.pid, signal.SIGKILL)


async def test_a_kept_cache_is_nobody_elses(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(tiny_model)
    config = EngineConfig(max_context=MAX_CONTEXT, kv_cache_mb=64, max_num_seqs=16, on_new_weights="keep", log_file=tmp_path / "vllm.log")
    keeping = make_engine(config, tiny_model, "keeping")
    try:
        await sync_weights(keeping, new_weights(reference, 1))
        prompts, generations, _ = await split_by(keeping, reference)
        split = next(i for i, one in enumerate(generations) if len(set(one.policy_version.tolist())) == 2)
        newest = generations[split].policy_version == keeping.weight_version
        apart = np.abs(reference_logprobs(reference, prompts[split], generations[split]) - generations[split].logprobs)[newest]
        assert apart.max() > 1e-3, "the context was computed again, or the new weights are not used"
        after = await keeping.generate(request(prompts[split]))  # a prefix that older weights have cached
        version, ours = keeping.weight_version, reference_logprobs(reference, prompts[split], after)
        check_parity(keeping.name, version, ours, after.logprobs, after.policy_version)
    finally:
        await keeping.close()
