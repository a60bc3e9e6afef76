"""Weights handed out in parts by the first process, which alone has read them, so that no other one ever holds all.

The others make the same modules without contents, on torch's meta device, and get their part of one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


def described(module: nn.Module) -> list[tuple[object, ...]]:
    """Every weight and buffer of a module: its name, the first name of the same tensor, shape, dtype, and whether it is
    trained. Modules that are described alike can be handed each other's weights."""
    first: dict[int, str] = {}
    return [(n, first.setdefault(id(t), n), tuple(t.shape), t.dtype, t.requires_grad) for n, t in _named(module)]


def is_empty(module: nn.Module) -> bool:
    """Whether a module has weights without contents."""
    return any(t.is_meta for _, t in _named(module))


def hand_out(module: nn.Module, mesh: DeviceMesh, rest: torch.device) -> Callable[[], None]:
    """Send each process of a mesh its part of the first one's weights, as `fully_shard` lays them out, and all of its
    buffers. All processes call it before the module is sharded. rest: where parts of weights are kept.

    Returns what to call after that: it puts what came into a module that `is_empty`, and does nothing to another.
    """
    copies, parts = [Replicate()] * mesh.ndim, [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    came: dict[int, Tensor] = {}
    empty = list[tuple[str, Tensor]]()  # by their names: weights that are tied have several
    for name, tensor in _named(module):
        if tensor.is_meta:
            empty.append((name, tensor))
        if id(tensor) in came:
            continue
        weight = isinstance(tensor, nn.Parameter)
        whole = torch.empty_like(tensor, device=mesh.device_type) if tensor.is_meta else tensor.detach()
        sent = distribute_tensor(whole.to(mesh.device_type), mesh, parts if weight else copies)
        came[id(tensor)] = tensor
        if tensor.is_meta:
            came[id(tensor)] = nn.Parameter(resting(sent, rest), tensor.requires_grad) if weight else sent.to_local()

    def put_in() -> None:
        for name, tensor in empty:
            owner, _, own = name.rpartition(".")
            place = module.get_submodule(owner)
            held = place._parameters if isinstance(tensor, nn.Parameter) else place._buffers
            held[own] = came[id(tensor)]  # type: ignore[assignment]

    return put_in


def resting(tensor: DTensor, device: torch.device) -> DTensor:
    """A spread tensor with its parts on this device, wherever it is computed with."""
    part = tensor.to_local()
    if part.device.type == device.type:
        return tensor
    return DTensor.from_local(
        part.to(device), tensor.device_mesh, tensor.placements,
        run_check=False, shape=tensor.shape, stride=tensor.stride(),
    )  # fmt: skip


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
