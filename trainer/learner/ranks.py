"""The processes that hold one policy between them: FSDP2 (`fully_shard`; Zhao et al. 2023, arXiv 2304.11277) over `torch.distributed`.

Each rank keeps a slice of every tensor. A decoder layer is whole only while it computes, and the output layer while a pass goes on;
gradients are added up over the ranks, each of which keeps its slice. So all ranks must do the same passes in the same order.

Backends: gloo on CPU, nccl on CUDA. Only tensors travel between ranks, nothing pickled.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ...rpc.loopback import collectives_on_loopback

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""By device type; counts and losses are agreed on over gloo in both."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that hold the policy. `Ranks()` holds it alone, without a process group."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and hands out weights."""
        return self.rank == 0

    def most(self, count: int) -> int:
        """The largest count of all ranks."""
        return int(self._agree(torch.tensor(count), dist.ReduceOp.MAX))

    def sum(self, value: float) -> float:
        """The sum over all ranks; one that is not finite makes it so."""
        return float(self._agree(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.SUM))

    def _agree(self, value: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value, how)
        return value


def listen(host: str, size: int, timeout_s: float) -> TCPStore:
    """The meeting point of `size` ranks on a free port of this machine, `store.port`, at this address of it alone. The process that holds
    it is rank 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=size)  # left to itself, a store listens on every address
    port = listener.getsockname()[1]
    limit = timedelta(seconds=timeout_s)
    return TCPStore(host, port, size, is_master=True, timeout=limit, wait_for_workers=False, master_listen_fd=listener.detach())


def join(host: str, port: int, rank: int, size: int, device: str, timeout_s: float, store: TCPStore | None = None) -> Ranks:
    """Take part as `rank` of `size`; returns when all did. store: what `listen` gave, at the first rank. timeout_s: how long a rank waits
    for the others, here and in every pass. On this machine alone, ranks reach each other over loopback."""
    if ip_address(host).is_loopback:
        os.environ.update(collectives_on_loopback())
    limit = timedelta(seconds=timeout_s)
    store = store or TCPStore(host, port, size, is_master=False, timeout=limit)
    dist.init_process_group(BACKENDS[torch.device(device).type], store=store, rank=rank, world_size=size, timeout=limit)
    return Ranks(rank, size)


def leave(ranks: Ranks) -> None:
    """End this process's part once all ranks are here. A process that ends with its threads of gloo at work may abort, and ranks that still
    wait for it fail."""
    if ranks.size > 1:
        dist.barrier()
        dist.destroy_process_group()


def shard(model: PreTrainedModel, ranks: Ranks, device: torch.device) -> None:
    """Keep this rank's slice of every parameter, on `device`: a group per decoder layer, one for the rest of the body.

    Every rank must give the same model. The output layer is gathered by `gathered_weight`, so its `forward` must not be called.
    """
    mesh = init_device_mesh(device.type, (ranks.size,))
    body, head = model.base_model, model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    groups = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)] + [body]
    for module in groups if tied else [*groups, head]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)  # a loss is of the whole batch, so its gradient is a sum over ranks
        module.set_force_sum_reduction_for_comms(True)
    if tied:
        head.weight = model.get_input_embeddings().weight


@contextmanager
def gathered_weight(layer: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """The layer as a function, its sliced weight whole within the context, where gradients add up until they go to the slices at its end.

    A collective: every rank must enter and leave it. A layer that is not sliced is its own function.
    """
    weight = layer.weight
    if not isinstance(weight, DTensor):
        yield layer
        return
    assert getattr(layer, "bias", None) is None, "an output layer with a bias has no sharded form"
    whole = weight.full_tensor().detach().requires_grad_(weight.requires_grad and torch.is_grad_enabled())
    yield lambda rows: nn.functional.linear(rows, whole)
    if whole.requires_grad:
        grad = whole.grad if whole.grad is not None else torch.zeros_like(whole)
        part = DTensor.from_local(grad, weight.device_mesh, [Partial()]).redistribute(placements=weight.placements)
        weight.grad = part if weight.grad is None else weight.grad + part


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a slice; a collective. Any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole copies on the CPU at the first rank, an empty dict at the others, where one whole tensor at a time is held."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if ranks.first:
            found[name] = full.cpu()
    return found


def laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, given on every rank, on the device of `like`, and cut into slices as `like` is. No rank waits for another."""
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None) if isinstance(like, DTensor) else there


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale gradients down to a global L2 norm of at most `largest`, over all ranks; returns the norm before."""
    trained = list(parameters)
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(trained, largest, norm)
    return float(norm)
