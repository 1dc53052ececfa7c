"""Training in several processes, started by ``torchrun``: FSDP2 shards of a model, shares of a batch, sums over all.

Every function works in a single process too, where it does nothing. Each process takes every n-th row of a batch, so
that all of them together see what one process would have seen. FSDP2 is imported where there are several: that takes
nearly as long as torch itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_export.checkpoint import Checkpoint, load_body
from edge_export.data import AnyBatch
from edge_export.models import make_model
from edge_export.terminal import console
from edge_export.torch_model import HybridBody
from edge_sdk.errors import ConfigError, explain

TIMEOUT = timedelta(days=2)
"""The first process may be busy that long (storing a teacher's answers) while the others wait."""


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files and talks to the user."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Meets the other processes that torchrun started, if it did; the device is this process's own."""
    if not dist.is_torchelastic_launched():
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        if device.type == "cuda":
            device = torch.device("cuda", dist.get_node_local_rank())
            torch.cuda.set_device(device)
        console.quiet = not is_first()
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the block, then the others do: they find what it made."""
    if world() > 1 and not is_first():
        dist.barrier()
    yield
    if world() > 1 and is_first():
        dist.barrier()


def share(batch: AnyBatch) -> AnyBatch:
    """This process's rows of a batch; ``tokens`` stays that of all. Raises ConfigError if they are no even shares."""
    count = world()
    if count == 1:
        return batch
    if len(batch.indices) % count:
        raise ConfigError(
            explain("The batch", expected=f"a multiple of {count} rows", found=len(batch.indices), todo="Change it.")
        )
    return batch.rows(slice(dist.get_rank(), None, count))


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if world() > 1:
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
    return tensor


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def sharded(module: AnyModule, device: torch.device) -> AnyModule:
    """The module with its parameters shared out (FSDP2), a model layer by layer; itself in a single process."""
    if world() == 1:
        return module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    for layer in module.layers if isinstance(module, HybridBody) else ():
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def load_sharded(folder: Path, device: torch.device) -> HybridBody:
    """The model of a checkpoint on all processes, read tensor by tensor: none of them ever holds the whole of it."""
    if world() == 1:
        return load_body(folder).to(device)
    checkpoint = Checkpoint(folder)
    with torch.device("meta"):
        model = make_model(checkpoint.config)
    sharded(model, device)
    state = {name: like(checkpoint.tensor(name).float().to(device), part) for name, part in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model


def like(full: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, which every process has, shared out as the example is."""
    if world() == 1:
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(example, DTensor):
        return full
    return distribute_tensor(full, example.device_mesh, example.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """A shared-out tensor put together on every process; all of them must ask for it."""
    if world() == 1:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(model: HybridBody) -> HybridBody:
    """An ordinary model, in the processor's memory, of the same weights; all processes must ask for it."""
    state = {name: whole(tensor.detach()).cpu() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        ordinary = make_model(model.config)
    ordinary.load_state_dict(state, assign=True)
    ordinary.tie()
    return ordinary
