"""The process that vLLM runs in: environment, logging and arguments, set before vLLM is imported."""

from __future__ import annotations

import json
import logging.config
import os
import warnings
from pathlib import Path
from typing import Any

from ...rpc.loopback import collectives_on_loopback
from .config import CPU_BATCHED_TOKENS, CPU_BLOCK_SIZE, CPU_KV_CACHE_MB, CPU_THREADS, EngineConfig

SERVED_NAME = "policy"
"""vLLM's name for the model in its metrics, where the path of its folder would stand."""


def prepare_process(config: EngineConfig, scratch: Path | None = None) -> None:
    """Set what vLLM reads from the environment, of this process and of those it starts, and keep it from writing to the terminal.
    `scratch` is a folder for what the started processes read; None when none is started.

    torch.compile is off on CPU: the model runs eagerly anyway, and compiling vLLM's one remaining helper costs 4 to 20 s at the first
    request.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if config.resolved_backend == "vllm-inprocess" else "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **listening_here(),
    }
    if config.resolved_device == "cpu":
        environment |= {
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": str(config.threads or CPU_THREADS),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its automatic choice pins every engine on a node to the same cores
        }
    logs = _logging_config(config)
    if scratch is None:
        environment["VLLM_CONFIGURE_LOGGING"] = "0"
        os.environ.pop("VLLM_LOGGING_CONFIG_PATH", None)
    else:
        (scratch / "logging.json").write_text(json.dumps(logs))
        environment |= {
            "VLLM_CONFIGURE_LOGGING": "1",
            "VLLM_LOGGING_CONFIG_PATH": str(scratch / "logging.json"),
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS") or "ignore::FutureWarning",
        }
    os.environ.update(environment)
    logging.config.dictConfig(logs)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.reduce_op` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


def listening_here() -> dict[str, str]:
    """The environment that keeps what an engine's processes say to each other on loopback: nothing of it asks who is there, and all of them
    are on one node."""
    return {"VLLM_HOST_IP": "127.0.0.1", **collectives_on_loopback()}


def engine_arguments(config: EngineConfig, model_path: Path) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs` and `AsyncEngineArgs`, the same for both backends."""
    arguments: dict[str, Any] = {
        "model": str(model_path),
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "generation_config": "vllm",  # sampling comes from the request alone
        "dtype": config.resolved_dtype,
        "max_model_len": config.max_context,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": config.prefix_caching,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from, temperature applied
        "distributed_executor_backend": _executor(config),
        "use_tqdm_on_load": False,
        "disable_log_stats": not config.vllm_metrics,
    }
    if config.vllm_metrics:
        arguments["served_model_name"] = SERVED_NAME
    if config.resolved_device == "cpu":
        arguments |= {
            "enforce_eager": True,
            "block_size": config.block_size or CPU_BLOCK_SIZE,
            "enable_chunked_prefill": False,  # a prompt split over two steps makes vLLM rewind a seeded generator, which CPU ones cannot
            "max_num_batched_tokens": max(CPU_BATCHED_TOKENS, config.max_context),
            "kv_cache_memory_bytes": (config.kv_cache_mb or CPU_KV_CACHE_MB) << 20,
        }
    else:
        arguments |= {"block_size": config.block_size, "tensor_parallel_size": config.gpus}
        if config.gpu_memory_fraction is not None:
            arguments["gpu_memory_utilization"] = config.gpu_memory_fraction
    return arguments


def stat_loggers(config: EngineConfig) -> list[Any] | None:
    """What vLLM's `LLMEngine` and `AsyncLLM` tell their statistics: metrics of the Ray worker that this process is. None without."""
    if not config.vllm_metrics:
        return None
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]


def _executor(config: EngineConfig) -> str | None:
    """In-process there is one worker. Several GPUs take processes of this node: left to itself, vLLM would take Ray's inside an actor."""
    if config.resolved_backend == "vllm-inprocess":
        return "uni"
    return "mp" if config.gpus > 1 else None


def _logging_config(config: EngineConfig) -> dict[str, Any]:
    """A `logging.config` dictionary for the logger "vllm": a file, or errors alone on stderr."""
    if config.log_file is None:
        level = "ERROR"
        handler: dict[str, Any] = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    else:
        level = (config.log_level or "info").upper()
        config.log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = {"class": "logging.FileHandler", "filename": str(config.log_file.resolve()), "delay": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"vllm": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s:%(lineno)d %(message)s"}},
        "handlers": {"vllm": handler | {"formatter": "vllm", "level": level}},
        "loggers": {
            "vllm": {"handlers": ["vllm"], "level": level, "propagate": False},
            "vllm.logging_utils.dump_input": {"level": "CRITICAL"},  # pages of scheduler state; the failure says what went wrong
        },
    }
