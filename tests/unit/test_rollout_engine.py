"""Engine config, the gate that guards a weight update, request checks, and the scripted engine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.rollout.engine import EngineConfig, make_engine
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.engine.gate import Gate
from burnish.rollout.engine.layout import check_shapes, checkpoint_shapes, checksum, shape_of
from burnish.rollout.engine.vllm_async import AsyncEngine
from burnish.rollout.engine.vllm_process import engine_arguments, stat_loggers

pytestmark = pytest.mark.unit


def request(prompt: list[int] | None = None, max_tokens: int = 8, request_id: str = "t/0", temperature: float = 1.0) -> GenerateRequest:
    return GenerateRequest(request_id, [1, 5] if prompt is None else prompt, max_tokens, temperature, stop_token_ids=(2,))


# Config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "gpu_memory_fraction": 0.5}, "gpu_memory_fraction: no effect on device 'cpu'"),
        ({"device": "cpu", "weight_transfer": "nccl"}, "weight_transfer: no learner sends weights that way yet"),
        ({"device": "cpu", "tensor_parallel": 2}, "tensor_parallel: no effect on device 'cpu'"),
        ({"device": "cuda", "threads": 2, "kv_cache_mb": 64}, "threads, kv_cache_mb: no effect on device 'cuda'"),
        ({"device": "cuda", "backend": "vllm-async", "weight_transfer": "ipc"}, "weight_transfer: no learner sends weights that way yet"),
        ({"device": "cuda", "backend": "vllm-inprocess", "tensor_parallel": 2}, "tensor_parallel: 2 needs backend = 'vllm-async'"),
        ({"device": "cpu", "log_level": "debug"}, "log_level: no effect without log_file"),
        ({"device": "cpu", "block_size": 16}, "block_size: 16 is not a multiple of 32"),
        ({"weight_deltas": False, "whole_weights_every": 5}, "whole_weights_every: no effect with weight_deltas = false"),
        ({"backend": "sglang"}, "backend"),
        ({"max_contxt": 5}, "max_contxt"),
        ({"request_timeout_s": float("inf")}, "request_timeout_s"),
    ],
)
def test_options_without_effect_and_mistakes_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(options)


def test_defaults_follow_the_device() -> None:
    assert EngineConfig(device="cpu").resolved_dtype == "float32"
    assert EngineConfig(device="cuda").resolved_dtype == "bfloat16"
    assert EngineConfig(device="cuda").resolved_backend == "vllm-inprocess"
    assert EngineConfig(device="cuda", tensor_parallel=2).resolved_backend == "vllm-async"


def test_a_model_over_several_gpus_takes_a_process_for_each(tmp_path: Path) -> None:
    one = engine_arguments(EngineConfig(device="cuda", gpu_memory_fraction=0.45), tmp_path)
    two = engine_arguments(EngineConfig(device="cuda", tensor_parallel=2), tmp_path)
    assert (one["tensor_parallel_size"], one["distributed_executor_backend"], one["gpu_memory_utilization"]) == (1, "uni", 0.45)
    assert (two["tensor_parallel_size"], two["distributed_executor_backend"]) == (2, "mp")


def test_vllm_keeps_statistics_where_they_are_asked_for(tmp_path: Path) -> None:
    """And calls the model by a name: by default its metrics would have the path of the folder as a label."""
    quiet, counted = (EngineConfig(device="cpu", vllm_metrics=on) for on in (False, True))
    assert engine_arguments(quiet, tmp_path)["disable_log_stats"] is True and stat_loggers(quiet) is None
    assert "served_model_name" not in engine_arguments(quiet, tmp_path)
    arguments = engine_arguments(counted, tmp_path)
    assert (arguments["disable_log_stats"], arguments["served_model_name"]) == (False, "policy")


def test_config_and_fake_import_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, burnish.rollout.engine.fake, burnish.rollout.weights; print([m for m in ('torch', 'vllm', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for backend in ("vllm-inprocess", "vllm-async"):
        with pytest.raises(ValueError, match=r"engine e0: .* is not a model folder"):
            make_engine(EngineConfig.model_validate({"backend": backend, "device": "cpu"}), tmp_path, "e0")


# Layout


def test_checkpoint_shapes_add_the_tied_head(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": np.zeros((6, 4), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"model.norm.weight": np.zeros(4, np.float32)}, tmp_path / "model-2.safetensors")
    assert checkpoint_shapes(tmp_path, tied=False) == {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,)}
    assert checkpoint_shapes(tmp_path, tied=True)["lm_head.weight"] == (6, 4)


def test_checkpoint_shapes_need_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*\.safetensors file"):
        checkpoint_shapes(tmp_path, tied=False)
    save_file({"odd.weight": np.zeros((6, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="its tied output head"):
        checkpoint_shapes(tmp_path, tied=True)


def test_check_shapes_names_every_kind_of_mismatch() -> None:
    expected = {"a": (2,), "b": (3,), "c": (4,)}
    check_shapes(expected, expected, "e0")
    with pytest.raises(
        ValueError, match=r"engine e0: 3 tensors announced, 3 expected \(missing c; unknown d; wrong shape b \(2,\) for \(3,\)\)"
    ):
        check_shapes({"a": (2,), "b": (2,), "d": (1,)}, expected, "e0")


@pytest.mark.parametrize("shape", [(2, 3), (4,), ()])
def test_a_checksum_says_the_shape(shape: tuple[int, ...]) -> None:
    assert shape_of(checksum(np.zeros(shape, np.float32))) == shape


# Gate


def gate_of(silent_s: float = 5.0, held_s: float = 5.0) -> Gate:
    return Gate("e0", silent_s, held_s)


async def test_gate_drains_before_it_pauses_and_holds_newcomers() -> None:
    gate, events = gate_of(), []

    async def hold(name: str, seconds: float) -> None:
        async with gate.admitted():
            events.append(f"{name} in")
            await asyncio.sleep(seconds)
            events.append(f"{name} out")

    first = asyncio.create_task(hold("first", 0.02))
    await asyncio.sleep(0)
    pausing = asyncio.create_task(gate.pause(5))
    await asyncio.sleep(0)
    second = asyncio.create_task(hold("second", 0))
    await pausing
    assert events == ["first in", "first out"]
    gate.start()
    gate.finish(4)
    assert (gate.version, events[-1]) == (4, "first out")
    gate.resume()
    await asyncio.gather(first, second)
    assert events[2:] == ["second in", "second out"]


async def test_gate_reopens_when_it_cannot_drain() -> None:
    gate = gate_of()
    async with gate.admitted():
        with pytest.raises(EpisodeFailure, match="engine_timeout in e0: 1 requests still in flight"):
            await gate.pause(0.01)
        async with gate.admitted():
            pass


class Stubborn:
    """vLLM as far as pausing goes. fails: the calls that do."""

    def __init__(self, *fails: str) -> None:
        self.fails, self.paused = fails, False

    async def pause_generation(self, **how: Any) -> None:
        self.paused = True
        if "pause" in self.fails:
            raise RuntimeError("no pause today")

    async def resume_generation(self) -> None:
        if "resume" in self.fails:
            raise RuntimeError("it sleeps on")
        self.paused = False


def engine_over(vllm: Stubborn) -> AsyncEngine:
    engine = AsyncEngine.__new__(AsyncEngine)
    engine._config, engine._gate = EngineConfig(backend="vllm-async"), gate_of()
    engine._llm, engine._end = vllm, None
    return engine


async def test_a_pause_that_vllm_refuses_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncEngine, "_await", _here)
    engine = engine_over(vllm := Stubborn("pause"))
    with pytest.raises(EpisodeFailure, match="no pause today"):
        await engine.pause_generation()
    assert not vllm.paused
    async with engine._gate.admitted():
        """The next request is let in."""


async def test_who_waits_is_told_at_once_when_vllm_does_not_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncEngine, "_await", _here)
    engine = engine_over(Stubborn("resume"))
    engine._gate.held_s = 3600.0
    await engine.pause_generation()

    async def ask() -> None:
        async with engine._gate.admitted():
            raise AssertionError("it was let in")

    waiting = asyncio.ensure_future(ask())
    await asyncio.sleep(0)
    with pytest.raises(EpisodeFailure, match="it sleeps on"):
        await engine.resume_generation()
    with pytest.raises(EpisodeFailure, match=r"engine_error in e0: .*it sleeps on"):
        await waiting


async def _here(self: AsyncEngine, work: Any) -> Any:
    """Instead of on the loop of vLLM, on this one."""
    try:
        return await work
    except RuntimeError as error:
        raise self._gate.failure(FailureKind.ENGINE_ERROR, str(error)) from error


async def test_gate_deadline_for_requests_held_back() -> None:
    gate = gate_of(held_s=0.01)
    await gate.pause(1)
    with pytest.raises(EpisodeFailure, match=r"engine_timeout in e0: held back for 0\.01 s"):
        async with gate.admitted():
            pass


async def test_gate_after_half_an_update_fails_held_and_later_requests_until_a_whole_one() -> None:
    gate = gate_of()
    await gate.pause(1)
    gate.start()
    held = asyncio.ensure_future(gate.admitted().__aenter__())
    await asyncio.sleep(0)
    gate.fail("tensor lost")
    for entering in (held, gate.admitted().__aenter__()):
        with pytest.raises(EpisodeFailure, match=r"engine_error in e0.*tensor lost"):
            await entering
    with pytest.raises(EpisodeFailure, match="tensor lost"):
        gate.resume()
    await gate.pause(1)
    gate.start()
    gate.finish(2)
    gate.resume()
    async with gate.admitted():
        assert gate.version == 2


async def test_gate_refuses_steps_out_of_order() -> None:
    gate = gate_of()
    with pytest.raises(ValueError, match="starts with pause_generation"):
        gate.start()
    with pytest.raises(ValueError, match="start_weight_update first"):
        gate.finish(1)
    await gate.pause(1)
    gate.start()
    with pytest.raises(EpisodeFailure, match="resumed before finish_weight_update"):
        gate.resume()


def test_gate_serves_event_loops_one_after_the_other() -> None:
    gate = gate_of(held_s=0.01)

    async def wait_in_vain() -> None:
        await gate.pause(1)
        with pytest.raises(EpisodeFailure):
            async with gate.admitted():
                pass
        gate.resume()

    asyncio.run(wait_in_vain())
    asyncio.run(wait_in_vain())


# Scripted engine


async def test_scripted_replies_stop_as_an_engine_does() -> None:
    engine = ScriptedEngine([Reply([7, 2, 9], [-0.1, -0.2, -0.3]), [4, 4, 4, 4]])
    first = await engine.generate(request())
    assert (first.token_ids.tolist(), first.stop_reason) == ([7, 2], "stop")
    np.testing.assert_allclose(first.logprobs, [-0.1, -0.2])
    second = await engine.generate(request(max_tokens=3))
    assert (second.token_ids.tolist(), second.stop_reason) == ([4, 4, 4], "length")
    assert first.token_ids.dtype == first.policy_version.dtype == np.int32
    assert first.logprobs.dtype == np.float32


async def test_a_stop_token_beyond_max_tokens_is_not_reached() -> None:
    generation = await ScriptedEngine([[7, 9, 2]]).generate(request(max_tokens=2))
    assert (generation.token_ids.tolist(), generation.stop_reason) == ([7, 9], "length")


async def test_scripted_function_sees_the_request_and_versions_follow_updates() -> None:
    engine = ScriptedEngine(lambda asked: [asked.prompt_token_ids[-1], 2])
    assert (await engine.generate(request([1, 8]))).policy_version.tolist() == [0, 0]
    await engine.pause_generation()
    await engine.start_weight_update({"a": (2,)})
    await engine.update_weights([("a", np.ones(2))])
    await engine.finish_weight_update(6)
    await engine.resume_generation()
    generation = await engine.generate(request([1, 8]))
    assert (generation.token_ids.tolist(), generation.policy_version.tolist()) == ([8, 2], [6, 6])
    assert list(engine.weights) == ["a"]


async def test_scripted_faults() -> None:
    own = EpisodeFailure(Failure(FailureKind.CANCELLED, "somebody", "else"))
    engine = ScriptedEngine([[2]], name="e7", faults={0: FailureKind.ENGINE_TIMEOUT, "t/9": own})
    with pytest.raises(EpisodeFailure, match="engine_timeout in e7"):
        await engine.generate(request())
    with pytest.raises(EpisodeFailure, match="cancelled in somebody"):
        await engine.generate(request(request_id="t/9"))
    assert (await engine.generate(request())).stop_reason == "stop"
    engine.lose("power cut")
    with pytest.raises(EpisodeFailure, match="engine_lost in e7: power cut"):
        await engine.generate(request())


async def test_scripted_engine_records_cancelled_requests() -> None:
    engine = ScriptedEngine([[2]], delay_s=5)
    task = asyncio.create_task(engine.generate(request(request_id="t/3")))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.cancelled == ["t/3"]
    await engine.pause_generation()  # nothing is left in flight


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request([]), "the prompt is empty"),
        (request([1, -1]), r"must lie in 0\.\.9"),
        (request([1, 10]), r"must lie in 0\.\.9"),
        (request([1] * 10, max_tokens=7), "10 prompt tokens and max_tokens 7 do not fit in 16 tokens of context; ask for 1 to 6"),
        (request(max_tokens=0), "max_tokens 0"),
        (request(temperature=0.001), r"temperature 0\.001 must be 0"),
        (request(temperature=float("nan")), "temperature nan"),
    ],
)
async def test_requests_that_cannot_be_served_are_refused(asked: GenerateRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await ScriptedEngine([[2]], max_context=16, vocab_size=10).generate(asked)
