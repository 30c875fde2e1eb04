"""What the machine that burnish is started on has: asked once, where a recipe's platform is chosen and its demands are checked."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512f", "avx512_bf16", "amx_bf16", "bf16"})
"""CPU flags of which one says that bfloat16 is not slower than float32: instructions for it, or vectors to convert it on the way."""


@dataclass(frozen=True, slots=True)
class Machine:
    """gpus: those that torch can use. bfloat16: whether its CPU is fit for bfloat16. gpu_mb: memory of the smallest GPU, in MB, 0 where
    there is none. Example: `Machine(gpus=2, gpu_mb=80_000)`.
    """

    gpus: int
    bfloat16: bool = True
    gpu_mb: int = 0


def this_machine() -> Machine:
    """Ask. Torch is imported only where it is built for GPUs; nothing is started on one."""
    memories = _gpu_memories()
    return Machine(len(memories), _bfloat16(), min(memories, default=0) // 1_000_000)


def _gpu_memories() -> list[int]:
    """Bytes of each GPU."""
    try:
        build = version("torch")
    except PackageNotFoundError:  # the light base: environments, rewards and services
        return []
    if build.endswith("+cpu"):
        return []
    import torch

    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def _bfloat16() -> bool:
    if not CPU_INFO.is_file():
        return True
    flags = {flag for line in CPU_INFO.read_text().splitlines() if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return bool(flags & BFLOAT16_FLAGS)
