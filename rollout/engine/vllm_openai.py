"""vLLM's own OpenAI-compatible application over one engine, to be mounted by a server.

vLLM brings the request schema, chat templating, detokenising, stop strings and streaming; all that is ours is the engine's arguments and
its end. The engine runs in a process of its own below the caller's, which dies with the caller.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.types import ASGIApp

from ..chat_template import BoundedTemplate
from .vllm_base import count_tokens
from .vllm_process import listening_here

CPU_BLOCK_SIZE = 32
"""Tokens per cache block. The default on CPU is 128, below which prompts would share no prefix."""

DEFAULT_MAX_CONTEXT = 2048
CONTEXTS_IN_CACHE = 4
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM makes room; an adapter takes that of the next larger one."""
PR_SET_PDEATHSIG = 1


class DieWithParent:
    """Mixed into vLLM's worker: asks the kernel to kill the engine's process when the process that started it is gone.

    vLLM ends its engine when the caller shuts it down or exits; a caller that is killed would leave the engine behind.
    """

    def die_with_parent(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


class Pulse:
    """Whether an engine that is asked for something samples at all, for anybody: what tells a slow one from one that hangs."""

    def __init__(self, silent_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.silent_s, self._clock = silent_s, clock
        self._tokens, self._seen, self._silent, self._looked = 0, 0, 0.0, clock()

    def sampled(self, tokens: int) -> None:
        self._tokens += tokens

    def look(self, asked: bool) -> None:
        """asked: whether it has requests. Raises TimeoutError when for `silent_s` seconds with requests it has sampled nothing; what it
        was not asked for in between does not make it well."""
        now, before, seen = self._clock(), self._seen, self._tokens
        passed, self._looked, self._seen = now - self._looked, now, seen
        self._silent = self._silent + (passed if asked else 0.0) if seen == before else 0.0
        if self._silent >= self.silent_s:
            raise TimeoutError(f"the engine hangs: asked for {self._silent:.0f} s, it has sampled no token for any request")


class Taken:
    """The tokens that requests have taken so far, by the `x-request-id` that they carry. An answer in one piece says so only at its end,
    and one that is broken off never does."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, tuple[int, int]]] = {}

    def begin(self, id: str) -> None:
        """id: without a hyphen."""
        self._of[id] = {}

    def read(self, id: str) -> tuple[int, int]:
        """Tokens of the prompts, once they were read, and of all answers so far."""
        prompts = self._of[id].values()
        return sum(read for read, _ in prompts), sum(written for _, written in prompts)

    def forget(self, id: str) -> None:
        del self._of[id]

    def note(self, state: Any, tokens: int) -> None:
        """state: vLLM's, of one answer to a prompt. It calls the prompt of a chat `chatcmpl-ID`, those of a completion `cmpl-ID-NUMBER`."""
        prompt = str(state.external_req_id)
        taken = self._of.get(prompt.partition("-")[2].partition("-")[0])
        if taken is not None:
            taken[prompt] = (state.prompt_len, taken.get(prompt, (0, 0))[1] + tokens)


@dataclass(frozen=True)
class OpenAIApp:
    """A running engine and the ASGI application in front of it."""

    asgi: ASGIApp
    engine: Any
    pulse: Pulse
    taken: Taken

    async def check_health(self) -> None:
        """Raises vLLM's EngineDeadError when the engine is gone, TimeoutError when it hangs."""
        await self.engine.check_health()
        self.pulse.look(self.engine.output_processor.has_unfinished_requests())

    def close(self) -> None:
        """End the engine and its process. Requests in flight are cut off."""
        self.engine.shutdown(timeout=0)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with a low-rank adapter, as peft stores it. rank: of its widest layer."""

    folder: Path
    rank: int


@dataclass(frozen=True)
class ServedModel:
    """A model folder, the name that it is asked for, and its low-rank adapters by theirs."""

    folder: Path
    name: str
    adapters: Mapping[str, Adapter] = field(default_factory=dict)


async def start_openai_app(
    model: ServedModel, *, max_context: int | None, max_concurrent: int, kv_cache_mb: int | None, device: str, threads: int,
    silent_s: float,
) -> OpenAIApp:  # fmt: skip
    """Start an engine on a model and the application that serves it and its adapters.

    max_context: None takes the model's own length, at most 2048. kv_cache_mb: None holds four whole contexts (CPU only). silent_s: see
    `Pulse`.
    Raises ValueError when `max_context` exceeds what the model was made for.
    """
    # The engine core runs its worker in its own process instead of a third one; vLLM reads this when it makes its config.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.update(listening_here())
    os.environ.pop("VLLM_LOGGING_CONFIG_PATH", None)  # an engine that ended may have left its own, whose file went with it
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    bound_templates()
    config = json.loads((model.folder / "config.json").read_text())
    context = context_length(config, max_context)
    # With =: a name that begins with a dash, out of a model folder's record, must not be an option of its own.
    arguments = [f"--model={model.folder}", f"--served-model-name={model.name}"]
    arguments += ["--max-model-len", str(context), "--max-num-seqs", str(max_concurrent)]
    arguments += ["--chat-template-content-format", "string"]  # as in training
    arguments += ["--disable-log-stats", "--disable-fastapi-docs", "--worker-extension-cls", f"{__name__}.{DieWithParent.__name__}"]
    if device == "cpu":
        cache = kv_cache_mb * 2**20 if kv_cache_mb else CONTEXTS_IN_CACHE * kv_cache_bytes(config, context)
        arguments += ["--dtype", "float32", "--block-size", str(CPU_BLOCK_SIZE), "--enforce-eager", "--kv-cache-memory-bytes", str(cache)]
        arguments += ["--distributed-executor-backend", "uni"]
    elif kv_cache_mb:
        arguments += ["--kv-cache-memory-bytes", str(kv_cache_mb * 2**20)]
    arguments += adapter_arguments(model.adapters)
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args), usage_context=UsageContext.OPENAI_API_SERVER)
    pulse, taken = Pulse(silent_s), Taken()
    count_tokens(engine, pulse.sampled, taken.note)
    try:
        await engine.collective_rpc("die_with_parent")
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        app.state.server = SimpleNamespace(should_exit=False)  # what vLLM's handler of engine errors tells; here `check_health` is asked
    except BaseException:
        engine.shutdown(timeout=0)
        raise
    return OpenAIApp(app, engine, pulse, taken)


def bound_templates() -> None:
    """Have whatever renders by a tokenizer's `apply_chat_template` in this process render within bounds: vLLM does so with messages of
    anybody, and what a template does with them shows only then."""
    from transformers.utils import chat_template_utils

    chat_template_utils._compile_jinja_template = BoundedTemplate


def adapter_arguments(adapters: Mapping[str, Adapter]) -> list[str]:
    """What vLLM is told of low-rank adapters: all of them are held at once, and any may stand in one batch.

    There is room for one more, which stays empty: vLLM's CPU kernels take what stands in the last place for requests that ask for none.
    """
    if not adapters:
        return []
    modules = [json.dumps({"name": name, "path": str(adapter.folder)}) for name, adapter in adapters.items()]
    widest, most = max(adapter.rank for adapter in adapters.values()), str(len(adapters) + 1)
    room = str(min(rank for rank in LORA_RANKS if rank >= widest))
    return ["--enable-lora", "--max-loras", most, "--max-cpu-loras", most, "--max-lora-rank", room, "--lora-modules", *modules]


def context_length(config: dict[str, Any], asked: int | None) -> int:
    """Tokens of context to serve. Raises ValueError when more is asked than the model was made for."""
    longest = int(config["max_position_embeddings"])
    if asked is not None and asked > longest:
        raise ValueError(f"max_context is {asked}, but the model was made for {longest} tokens")
    return asked or min(longest, DEFAULT_MAX_CONTEXT)


def kv_cache_bytes(config: dict[str, Any], tokens: int) -> int:
    """Bytes of a float32 key-value cache for `tokens` tokens, whole blocks."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    blocks = -(-tokens // CPU_BLOCK_SIZE) + 1
    return int(2 * config["num_hidden_layers"] * heads * head_dim * 4 * blocks * CPU_BLOCK_SIZE)
