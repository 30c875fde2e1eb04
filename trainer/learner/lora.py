"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): `W x + (alpha / rank) B A x`, of which A `[rank, in]` and B `[out, rank]`
learn. The layers are peft's, and so is the form in which adapters are stored. B starts at 0, so the policy starts as the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import PreTrainedModel

from .config import LoRAConfig
from .ranks import whole

NAME = "default"
"""peft's name of an adapter that has none."""
PEFT_PREFIX = "base_model.model."
"""What peft puts before a model's own names in an adapter's file."""


def add_adapters(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Put adapters at the layers that `config.targets` names, and freeze everything else. A is random, of torch's generator."""
    asked = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    inject_adapter_in_model(asked, model)


def merged_tensors(state: Mapping[str, Tensor], config: LoRAConfig) -> Iterator[tuple[str, Tensor]]:
    """The names and weights of a model without adapters that computes the same, a whole tensor at a time. A collective, see `whole`.

    state: the `state_dict` of a model that `add_adapters` changed.
    """
    adapters = {name: tensor for name, tensor in state.items() if _is_adapter(name)}
    for name, base in base_tensors(state):
        layer, full = name.removesuffix(".weight"), base
        if f"{layer}.lora_A.{NAME}.weight" in adapters:
            a, b = (whole(adapters[f"{layer}.lora_{which}.{NAME}.weight"].detach()) for which in "AB")
            full = torch.addmm(base, b, a, alpha=config.alpha / config.rank)
        yield name, full


def base_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The names and weights of the model under the adapters, a whole tensor at a time. A collective, see `whole`."""
    for name, tensor in state.items():
        if not _is_adapter(name):
            yield name.replace(".base_layer.", "."), whole(tensor.detach())


def adapter_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every A and B under the name of its layer (`rollout/transport/adapters.py`), a whole tensor at a time. A collective, see `whole`."""
    for name, tensor in state.items():
        if _is_adapter(name):
            yield name.replace(f".{NAME}.", "."), whole(tensor.detach())


def _is_adapter(name: str) -> bool:
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


def to_peft(name: str) -> str:
    """The name of an adapter's tensor in peft's files."""
    return PEFT_PREFIX + name.replace(f".{NAME}.", ".")


def adapter_config(config: LoRAConfig) -> str:
    """The `adapter_config.json` that peft reads."""
    form = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.0, "inference_mode": True}
    return json.dumps(form | {"r": config.rank, "lora_alpha": config.alpha, "target_modules": list(config.targets)}, indent=1)
