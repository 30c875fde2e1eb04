"""vLLM in processes of its own, behind `AsyncLLM`: what a GPU node wants, and a CPU can do too."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.numpy import save_file

from ...envs.failures import EpisodeFailure, FailureKind, short_traceback
from .base import GenerateRequest
from .config import EngineConfig
from .vllm_base import WARM_UP, VLLMEngine, sampling_params
from .vllm_process import engine_arguments, prepare_process

T = TypeVar("T")

CLOSE_TIMEOUT_S = 30.0
SHARED_MEMORY = Path("/dev/shm")


class AsyncEngine(VLLMEngine):
    """An `Engine` over vLLM's `AsyncLLM`.

    `AsyncLLM` lives on an event loop of its own, in a thread, so that one engine serves any number of callers' loops. If one of its
    processes dies, everything in flight and every later call raises EpisodeFailure ENGINE_LOST.

    Weights pass through a safetensors file in shared memory that vLLM's workers load (`reload_weights`), on CPU and CUDA alike.

    With `weight_transfer` set, vLLM's native transfer takes its place: the learner's process drives `NCCLTrainerWeightTransferEngine` or
    `IPCTrainerWeightTransferEngine` (vllm.distributed.weight_transfer) with a client whose calls end in `init_weight_transfer_engine`,
    `start_weight_update`, `receive_weights` and `finish_weight_update` here. This native path needs CUDA and has never been run: it is
    written against vLLM 0.32's sources.

    The constructor blocks until the engine has answered a first request; it raises EpisodeFailure when that fails.
    """

    def __init__(self, config: EngineConfig, model_path: Path, name: str) -> None:
        super().__init__(config, model_path, name)
        self._native = config.weight_transfer is not None
        self._llm: Any = None
        self._end: str | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="burnish-engine-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        self._scratch = Path(self._folder.name)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"engine-{name}", daemon=True)
        self._thread.start()
        atexit.register(self._discard)
        try:
            prepare_process(config, self._scratch)
            self._run(self._start()).result(config.start_timeout_s)
            self._learn_model(self._vllm().model_config)
            self._run(self._collect("warm-up", WARM_UP)).result(config.start_timeout_s)
        except TimeoutError:
            self._discard()
            raise self._gate.failure(FailureKind.ENGINE_TIMEOUT, f"not started within {config.start_timeout_s:g} s") from None
        except Exception as error:
            self._discard()
            raise self._lost(short_traceback(error)) from error

    async def pause_generation(self) -> None:
        await super().pause_generation()
        await self._call(self._vllm().pause_generation(mode="wait", clear_cache=False), self._config.drain_timeout_s, "a pause")

    async def resume_generation(self) -> None:
        await super().resume_generation()
        await self._call(self._vllm().resume_generation(), self._config.update_timeout_s, "resuming")

    async def close(self) -> None:
        await asyncio.to_thread(self._discard)

    async def start_weight_update(self) -> None:
        await super().start_weight_update()
        if self._native:
            await self._call(self._vllm().start_weight_update(), self._config.update_timeout_s, "the start of a weight update")

    async def update_weights(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        if self._native:
            raise ValueError(f"engine {self.name} takes weights over {self._config.weight_transfer}; send them with receive_weights")
        await super().update_weights(tensors)

    async def finish_weight_update(self, version: int) -> None:
        if not self._native:
            return await super().finish_weight_update(version)
        self._gate.require_updating()
        try:
            self._vllm()
            await self._call(self._finish_native(version), self._config.update_timeout_s, "the end of a weight update")
        except BaseException as error:
            self._gate.fail(f"{type(error).__name__}: {error}")
            raise
        self._gate.finish(version)

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the learner's transfer group; `init_info` is what vLLM's trainer-side engine sends. CUDA only, never run."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        request = WeightTransferInitRequest(init_info=init_info)
        await self._call(self._vllm().init_weight_transfer_engine(request), self._config.update_timeout_s, "joining the weight transfer")

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one chunk that the learner sends at the same time; `update_info` describes it. CUDA only, never run."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._gate.require_updating()
        request = WeightTransferUpdateRequest(update_info=update_info)
        try:
            await self._call(self._vllm().update_weights(request), self._config.update_timeout_s, "receiving weights")
        except BaseException as error:
            self._gate.fail(f"{type(error).__name__}: {error}")
            raise

    async def _submit(self, request_id: str, request: GenerateRequest) -> Any:
        self._vllm()
        return await self._await(self._collect(request_id, request))

    async def _load(self, tensors: dict[str, np.ndarray], version: int) -> None:
        self._vllm()
        await self._await(self._reload(tensors, version))

    async def _start(self) -> None:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(self._config, self._model_path)
        if self._config.weight_transfer is not None:
            arguments["weight_transfer_config"] = WeightTransferConfig(backend=self._config.weight_transfer)
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        await self._llm.update_weight_version("0")

    def _vllm(self) -> Any:
        """The running `AsyncLLM`. Raises EpisodeFailure ENGINE_LOST when there is none any more."""
        if self._end is not None:
            raise self._lost(self._end)
        return self._llm

    async def _collect(self, request_id: str, request: GenerateRequest) -> Any:
        from vllm.inputs.engine import tokens_input

        outputs = self._vllm().generate(tokens_input(request.prompt_token_ids), sampling_params(request), request_id)
        return [output async for output in outputs][-1]  # the final one is the only one

    async def _reload(self, tensors: dict[str, np.ndarray], version: int) -> None:
        folder = self._scratch / f"version-{version}"
        folder.mkdir()
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
            await self._vllm().collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        finally:
            shutil.rmtree(folder)
        await self._reset_cache()
        await self._llm.update_weight_version(str(version))

    async def _finish_native(self, version: int) -> None:
        await self._llm.finish_weight_update(weight_version=str(version))
        await self._reset_cache()

    async def _reset_cache(self) -> None:
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset: blocks are still in use")

    async def _call(self, work: Coroutine[Any, Any, T], timeout_s: float, what: str) -> T:
        return await self._within(self._await(work), timeout_s, f"{what} not done")

    async def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on vLLM's loop and wait for it on the caller's; cancelling the wait cancels the work."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await asyncio.wrap_future(self._run(work))
        except asyncio.CancelledError:
            if self._end is not None and (task := asyncio.current_task()) is not None and not task.cancelling():
                raise self._lost(self._end) from None  # the engine ended the work, not the caller
            raise
        except EngineDeadError as error:
            self._end = short_traceback(error)
            raise self._lost(self._end) from error
        except EpisodeFailure:
            raise
        except Exception as error:
            raise self._gate.failure(FailureKind.ENGINE_ERROR, short_traceback(error)) from error

    def _run(self, work: Coroutine[Any, Any, T]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _discard(self) -> None:
        """Stop vLLM's processes, the loop and its thread, and remove what was left in shared memory. Doing it twice is harmless."""
        self._end = self._end or "the engine was closed"
        if self._thread.is_alive():
            with suppress(TimeoutError):
                self._run(_cancel_other_tasks()).result(CLOSE_TIMEOUT_S)
        if self._llm is not None:
            self._llm.shutdown(CLOSE_TIMEOUT_S)
            self._llm = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT_S)
        self._folder.cleanup()
        os.environ.pop("VLLM_LOGGING_CONFIG_PATH", None)  # it names a file of that folder, and processes started later would look for it
        atexit.unregister(self._discard)


async def _cancel_other_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
