"""Platforms: a recipe names the work, and what belongs to a device stands in tables that are laid over it, chosen with the platform.

[engine]                      # on every platform
max_context = 1024

[cpu.engine]                  # on a CPU
threads = 2

[gpu.engine]                  # on GPUs
tensor_parallel = 2

[gpu.learner]
dtype = "bfloat16"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal

from burnish.envs.registry import did_you_mean
from burnish.rollout.engine.config import Device

Platform = Literal["cpu", "gpu"]
PLATFORMS: tuple[Platform, ...] = ("cpu", "gpu")
DEVICES: Mapping[Platform, Device] = {"cpu": "cpu", "gpu": "cuda"}
"""Where engine and learner compute on a platform."""

OVERLAID = ("engine", "learner", "resources", "rollout")
"""The tables that may stand below `[cpu]` and `[gpu]`."""


def overlay_problems(data: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the form of a recipe's `[cpu]` and `[gpu]` tables: lines `field: what is wrong and what to do`."""
    for platform in PLATFORMS:
        overlay = data.get(platform, {})
        if not isinstance(overlay, Mapping):
            yield f"{platform}: must be a table, such as [{platform}.engine]"
            continue
        for key, table in overlay.items():
            if key not in OVERLAID:
                yield f"{platform}.{key}: does not depend on the platform{did_you_mean(key, list(OVERLAID))}"
            elif not isinstance(table, Mapping):
                yield f"{platform}.{key}: must be a table: [{platform}.{key}]"


def laid_over(data: Mapping[str, Any], platform: Platform) -> dict[str, Any]:
    """Recipe data on one platform: its tables over the recipe's own, and these over the platform's device.

    Example: `laid_over({"engine": {"max_num_seqs": 8}, "gpu": {"engine": {"max_num_seqs": 256}}}, "gpu")` has
    `engine = {"device": "cuda", "max_num_seqs": 256}`, `learner = {"device": "cuda"}` and `platform = "gpu"`.
    """
    own = {key: value for key, value in data.items() if key not in PLATFORMS}
    devices = {table: {"device": DEVICES[platform]} for table in ("engine", "learner")}
    below = _merged(devices, own)
    return deepcopy(_merged(below, {**data.get(platform, {}), "platform": platform}))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two pieces of recipe data, tables joined key by key; where both have a value, that of `above` counts."""
    both = {
        key: _merged(below[key], above[key]) for key in below if isinstance(below[key], Mapping) and isinstance(above.get(key), Mapping)
    }
    return {**below, **above, **both}
