"""The optimizer of one phase: AdamW over a model's parameters, its learning rate as a plain function, its state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import OptimizerConfig
from .ranks import laid_out_as


def learning_rate(config: OptimizerConfig, step: int, first: int = 0) -> float:
    """The rate of update `step` (0 is the phase's first): linear warm-up, then constant or half a cosine, then its floor. first: the update
    that the warm-up begins with; before it, the rate is 0."""
    peak = first + config.warmup_steps
    if step < first:
        return 0.0
    if step < peak:
        return config.lr * (step - first + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    assert config.total_steps is not None
    assert config.total_steps > peak, "nothing is left of the phase for its rate to fall in"
    done = min(1.0, (step - peak) / (config.total_steps - peak))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only. The fused kernel updates all parameters in one pass, on CPU too."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>:<state>` (for example `model.norm.weight:exp_avg`); empty before the first step."""
    return {
        f"{name}:{key}": value for name, parameter in model.named_parameters() for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, from whole tensors. Raises ValueError when one belongs to no parameter or differs in shape."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(":")
        parameter = parameters.get(name)
        if parameter is None or tensor.shape not in ((), parameter.shape):
            raise ValueError(f"optimizer state {full_name!r} {tuple(tensor.shape)} is of another model than the one it is restored into")
        optimizer.state[parameter][key] = laid_out_as(parameter, tensor) if tensor.shape else tensor.to(parameter.device)
