"""vLLM in processes of its own, behind `AsyncLLM`: what a GPU node wants, and a CPU can do too."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import TensorSpec, safe_open, serialize_file

from ...envs.failures import EpisodeFailure, FailureKind, short_traceback
from ..writing import writing
from .base import GenerateRequest
from .config import EngineConfig
from .layout import checksum, dtype_name
from .vllm_base import WARM_UP, VLLMEngine, as_array, count_tokens, sampling_params
from .vllm_process import engine_arguments, prepare_process, stat_loggers

T = TypeVar("T")

CLOSE_TIMEOUT_S = 30.0
SHARED_MEMORY = Path("/dev/shm")
FILE_BYTES = 128 * 2**20
"""Of one of the files that weights pass through, unless a single tensor is larger."""


class AsyncEngine(VLLMEngine):
    """An `Engine` over vLLM's `AsyncLLM`.

    `AsyncLLM` lives on an event loop of its own, in a thread, so that one engine serves any number of callers' loops. If one of its
    processes dies, everything in flight and every later call raises EpisodeFailure ENGINE_LOST.

    Weights pass through safetensors files in shared memory that vLLM's workers load (`reload_weights`), on CPU and CUDA alike; the path
    on CUDA was never run.

    The constructor blocks until the engine has answered a first request; it raises EpisodeFailure when that fails.
    """

    def __init__(self, config: EngineConfig, model_path: Path, name: str) -> None:
        super().__init__(config, model_path, name)
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

    async def pause_generation(self, finish: bool = True) -> None:
        await super().pause_generation(finish)
        mode = "wait" if finish else "keep"
        try:
            await self._call(self._vllm().pause_generation(mode=mode, clear_cache=False), self._config.drain_timeout_s, "a pause")
        except BaseException:
            with suppress(EpisodeFailure):
                await self.resume_generation()  # nothing was changed: whoever waits at the gate goes on
            raise

    async def resume_generation(self) -> None:
        try:
            await self._call(self._vllm().resume_generation(), self._config.update_timeout_s, "resuming")
        except EpisodeFailure as failure:
            self._gate.fail(failure.failure.detail)  # what waits is told so at once, instead of when its time is over
            raise
        await super().resume_generation()

    async def close(self) -> None:
        await asyncio.to_thread(self._discard)

    async def _submit(self, request_id: str, request: GenerateRequest) -> Any:
        self._vllm()
        return await self._await(self._collect(request_id, request))

    async def _load(self, tensors: Iterable[tuple[str, np.ndarray]]) -> Mapping[str, str]:
        self._vllm()
        folder = self._scratch / "weights"
        folder.mkdir()
        try:
            await asyncio.to_thread(write_files, tensors, folder)
            await self._await(self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)}))
            return await asyncio.to_thread(_checksums, folder)
        finally:
            shutil.rmtree(folder)

    async def _adopt(self, version: int) -> None:
        self._vllm()
        await self._await(self._label(version))

    async def _start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(self._config, self._model_path)
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=stat_loggers(self._config))
        count_tokens(self._llm, self._gate.sampled)
        await self._llm.update_weight_version("0")

    def _vllm(self) -> Any:
        """The running `AsyncLLM`. Raises EpisodeFailure ENGINE_LOST when there is none any more."""
        if self._end is not None:
            raise self._lost(self._end)
        return self._llm

    async def _collect(self, request_id: str, request: GenerateRequest) -> Any:
        outputs = self._vllm().generate(self._inputs(request), sampling_params(request), request_id)
        return [output async for output in outputs][-1]  # the final one is the only one

    async def _label(self, version: int) -> None:
        under_way = self._gate.in_flight > 0  # where there should be nothing, a block in use is one that was never freed
        if not self._keeps and not await self._llm.reset_prefix_cache(reset_running_requests=under_way):
            raise RuntimeError("the prefix cache could not be reset: blocks are still in use")
        await self._llm.update_weight_version(str(version))

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


def write_files(tensors: Iterable[tuple[str, np.ndarray]], folder: Path) -> None:
    """Write tensors as they come into safetensors files of about `FILE_BYTES` each, so that few of them are in memory a second time."""
    group: dict[str, np.ndarray] = {}
    size, files = 0, 0
    for name, array in tensors:
        if group and size + array.nbytes > FILE_BYTES:
            _write(group, folder / f"model-{files:05d}.safetensors")
            group, size, files = {}, 0, files + 1
        group[name] = np.ascontiguousarray(array)
        size += array.nbytes
    _write(group, folder / f"model-{files:05d}.safetensors")


def _write(tensors: Mapping[str, np.ndarray], file: Path) -> None:
    """`safetensors.numpy.save_file`, which knows no bfloat16."""
    specs = {
        name: TensorSpec(dtype=dtype_name(array), shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in tensors.items()
    }
    with writing(file):
        serialize_file(specs, file)


def _checksums(folder: Path) -> dict[str, str]:
    """Of every tensor in the files, which are what vLLM's workers have read."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: checksum(as_array(tensors.get_tensor(name))) for name in tensors.keys()}  # noqa: SIM118  (no mapping)
    return found
