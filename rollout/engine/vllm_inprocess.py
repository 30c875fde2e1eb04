"""vLLM on one dedicated thread of this process: no second import of vLLM, no copies between processes, weights loaded from our memory."""

from __future__ import annotations

import asyncio
import atexit
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...envs.failures import EpisodeFailure, FailureKind, short_traceback
from .base import GenerateRequest
from .config import CPU_THREADS, EngineConfig
from .layout import checksum
from .vllm_base import WARM_UP, VLLMEngine, as_tensor, count_tokens, register_model_class, sampling_params
from .vllm_process import engine_arguments, prepare_process, stat_loggers

CLOSE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Generate:
    request_id: str
    request: GenerateRequest
    reply: Future[Any]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Call:
    """Run a function on vLLM's `LLMEngine`, in the engine's thread; an exception ends the engine."""

    function: Callable[[Any], Any]
    reply: Future[Any]


class _Stop:
    """Leave the thread."""


_Command = _Generate | _Abort | _Call | _Stop


class InProcessEngine(VLLMEngine):
    """An `Engine` over vLLM's `LLMEngine`.

    The thread owns vLLM: it alone steps it, adds and aborts requests, and loads weights. Commands reach it through a queue, answers
    leave as futures. Between a pause and the resuming it takes commands and steps nothing: nobody samples from weights that have no
    version yet. If it dies, everything in flight and every later call raises EpisodeFailure ENGINE_LOST.

    vLLM on CPU changes torch for the whole process (streams, events, thread counts): keep the learner in another one.

    The constructor blocks until the engine has answered a first request; it raises EpisodeFailure when that fails.
    """

    def __init__(self, config: EngineConfig, model_path: Path, name: str) -> None:
        super().__init__(config, model_path, name)
        prepare_process(config)
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._replies: dict[str, Future[Any]] = {}
        self._end: str | None = None
        self._still = False  # the thread's own
        self._lock = threading.Lock()  # orders "put a command" against "the thread ended"
        ready: Future[Any] = _running_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=f"engine-{name}", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # a thread still inside torch when Python ends would abort the process
        try:
            self._learn_model(ready.result(config.start_timeout_s))
            self._put_generate("warm-up", WARM_UP).result(config.start_timeout_s)
        except TimeoutError:
            raise self._gate.failure(FailureKind.ENGINE_TIMEOUT, f"not started within {config.start_timeout_s:g} s") from None

    async def pause_generation(self, finish: bool = True) -> None:
        await super().pause_generation(finish)
        try:
            await self._within(self._call(self._stand_still), self._config.drain_timeout_s, "a pause not done")
        except BaseException:
            with suppress(EpisodeFailure):
                await self.resume_generation()  # nothing was changed: whoever waits at the gate goes on
            raise

    async def resume_generation(self) -> None:
        await super().resume_generation()  # raises where the weights are not known; the thread then stands still until they are
        await self._within(self._call(self._go_on), self._config.update_timeout_s, "resuming not done")

    async def close(self) -> None:
        await asyncio.to_thread(self._stop)
        atexit.unregister(self._stop)
        if self._thread.is_alive():
            raise self._gate.failure(FailureKind.ENGINE_TIMEOUT, f"its thread did not stop within {CLOSE_TIMEOUT_S:g} s")

    async def _submit(self, request_id: str, request: GenerateRequest) -> Any:
        reply = self._put_generate(request_id, request)
        try:
            return await asyncio.wrap_future(reply)
        except asyncio.CancelledError:
            self._commands.put(_Abort(request_id))
            raise

    async def _load(self, tensors: Iterable[tuple[str, np.ndarray]]) -> Mapping[str, str]:
        def load(llm: Any) -> Mapping[str, str]:
            consumed: dict[str, str] = {}
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _consumed(tensors, consumed)})
            return consumed

        loaded: Mapping[str, str] = await self._call(load)
        return loaded

    async def _adopt(self, version: int) -> None:
        def adopt(llm: Any) -> None:
            under_way = self._gate.in_flight > 0  # where there should be nothing, a block in use is one that was never freed
            if not self._keeps and not llm.reset_prefix_cache(reset_running_requests=under_way):
                raise RuntimeError("the prefix cache could not be reset: blocks are still in use")
            llm.engine_core.set_weight_version(str(version))

        await self._call(adopt)

    async def _call(self, function: Callable[[Any], Any]) -> Any:
        return await asyncio.wrap_future(self._put(_Call(function, _running_future())))

    def _put_generate(self, request_id: str, request: GenerateRequest) -> Future[Any]:
        return self._put(_Generate(request_id, request, _running_future()))

    def _put(self, command: _Generate | _Call) -> Future[Any]:
        with self._lock:
            if self._end is not None:
                raise self._lost(self._end)
            self._commands.put(command)
        return command.reply

    def _stop(self) -> None:
        with self._lock:
            self._end = self._end or "the engine was closed"
            self._commands.put(_Stop())
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self, ready: Future[Any]) -> None:
        """The thread: build vLLM, serve commands until told to stop, and leave no reply unanswered."""
        llm = None
        try:
            llm = _build(self._config, self._model_path)
            count_tokens(llm, self._gate.sampled)
            ready.set_result(llm.vllm_config.model_config)
            self._serve(llm)
            end = "the engine was closed"
        except BaseException as error:  # whatever ended it, nobody may be left waiting
            end = short_traceback(error)
        with self._lock:
            self._end = end
        lost = self._lost(end)
        for reply in (ready, *self._replies.values(), *self._unserved()):
            if not reply.done():
                reply.set_exception(lost)
        self._replies.clear()
        if llm is not None:
            llm.engine_core.shutdown()

    def _serve(self, llm: Any) -> None:
        """Run commands as they come and step vLLM while it has work; wait for a command when it has none, or stands still."""
        while True:
            command = self._next_command(wait=self._still or not llm.has_unfinished_requests())
            if command is None:
                self._step(llm)
            elif isinstance(command, _Generate):
                self._add(llm, command)
            elif isinstance(command, _Abort):
                self._replies.pop(command.request_id, None)
                llm.abort_request([command.request_id])
            elif isinstance(command, _Call):
                self._replies["call"] = command.reply  # answered even if the function ends the thread
                command.reply.set_result(command.function(llm))
                del self._replies["call"]
            else:
                return

    def _step(self, llm: Any) -> None:
        for output in llm.step():
            if output.finished:
                self._replies.pop(output.request_id).set_result(output)

    def _stand_still(self, llm: Any) -> None:
        """Step no more, once what was sampled has been taken in: vLLM gives a token the version of the moment in which it takes it in, and
        with asynchronous scheduling that is a step later."""
        core = llm.engine_core.engine_core
        core.pause_scheduler("keep", clear_cache=False)
        while core.batch_queue:
            self._step(llm)
        self._still = True

    def _go_on(self, llm: Any) -> None:
        llm.engine_core.engine_core.resume_scheduler()
        self._still = False

    def _add(self, llm: Any, command: _Generate) -> None:
        try:
            llm.add_request(command.request_id, self._inputs(command.request), sampling_params(command.request))
        except ValueError as error:  # vLLM refuses this request; the others are not concerned
            command.reply.set_exception(self._gate.failure(FailureKind.ENGINE_ERROR, short_traceback(error)))
        else:
            self._replies[command.request_id] = command.reply

    def _next_command(self, wait: bool) -> _Command | None:
        try:
            return self._commands.get(block=wait)
        except queue.Empty:
            return None

    def _unserved(self) -> list[Future[Any]]:
        replies = []
        while (command := self._next_command(wait=False)) is not None:
            if isinstance(command, _Generate | _Call):
                replies.append(command.reply)
        return replies


def _consumed(tensors: Iterable[tuple[str, np.ndarray]], checksums: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The tensors for vLLM's loader, each with its checksum noted as the loader asks for it."""
    for name, array in tensors:
        checksums[name] = checksum(array)
        yield name, as_tensor(array)


def _build(config: EngineConfig, model_path: Path) -> Any:
    """vLLM's `LLMEngine`, answering as weight version 0."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    if config.resolved_device == "cpu":
        torch.set_num_threads(config.threads or CPU_THREADS)  # OMP_NUM_THREADS came too late if torch was imported before
    register_model_class(json.loads((model_path / "config.json").read_text()).get("architectures") or ())
    llm = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(config, model_path)), stat_loggers=stat_loggers(config))
    llm.engine_core.set_weight_version("0")
    return llm


def _running_future() -> Future[Any]:
    """A future that cannot be cancelled from the waiting side, so that the thread may always set it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
