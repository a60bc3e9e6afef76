"""A trunk's weights, gradients and optimizer state spread over processes: the only user of torch's `fully_shard`.

Each process holds a part of each weight. A decoder layer is put together on every process when its forward or backward
comes, and let go of after it, so that what a run computes is what one process would compute. All processes therefore
run equally many forwards and backwards (`measure.measure` runs fillers). What does not, such as sampling, runs while
the weights are `whole`.

Zhao et al. 2023 (PyTorch FSDP); Rajbhandari et al. 2020 (ZeRO).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from prefiere.models.shard.hand_out import hand_out, resting
from prefiere.models.trunk import Trunk

Sharing = Literal["full", "hybrid"]
ENTRIES = ("states", "values", "scores", "settle")
"""Ways into a trunk besides its forward."""


def mesh_of(device: torch.device, size: int, nodes: int, how: Sharing) -> DeviceMesh:
    """The processes of a run: all of them share the weights (full), or those of each node do, and nodes hold copies
    (hybrid)."""
    if how == "full":
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (nodes, size // nodes), mesh_dim_names=("replicate", "shard"))


def shard(
    trunk: Trunk, mesh: DeviceMesh, *, from_first: bool = False, compiled: bool = False, offload: bool = False
) -> None:
    """Let each process keep its part of every weight of a trunk; gradients become sums over all processes.

    from_first: its part of the first one's weights, where that one alone has read them (`hand_out`). compiled: each
    layer is, for the time between being put together and let go of. offload: the parts, with their gradients, rest in
    the processor's memory, and an optimizer steps there. Parameters are other objects afterwards: an
    optimizer is made after it. A sharded trunk cannot be copied.
    """
    rest = torch.device("cpu" if offload else mesh.device_type)
    put_in = hand_out(trunk, mesh, rest) if from_first else None
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    for layer in layers_of(trunk):
        if compiled:
            _compile(layer, trunk)
        fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(trunk, mesh=mesh, offload_policy=policy)
    for each in (trunk, *trunk.bodies.values()) if offload else ():
        cast(Trunk, each).computes_on = torch.device(mesh.device_type)
    if put_in is not None:
        put_in()
    for name in ENTRIES:
        register_fsdp_forward_method(trunk, name)
    for part in parts_of(trunk):
        part.set_gradient_divide_factor(1.0)  # the engine has divided by the counts of the whole update
        if mesh.device_type != "cuda":  # gloo can only add
            part.set_force_sum_reduction_for_comms(True)
    _keep(trunk, False)
    trunk.settle()  # the trunk is the root of all its layers, whatever runs first


def _compile(layer: nn.Module, trunk: Trunk) -> None:
    """Compile a layer's forward alone: not the hooks that put its weights together, nor the names of its weights. While
    all weights are `whole` it runs as it was, for rows of ever other shapes."""
    plain, fast = layer.forward, torch.compile(layer.forward, dynamic=True)

    @wraps(plain)
    def forward(*given: Any, **named: Any) -> Any:
        return (plain if _kept(trunk) else fast)(*given, **named)

    layer.forward = forward


def layers_of(trunk: Trunk) -> list[nn.Module]:
    """The layers of a trunk's models, as their classes name them: what is put together at a time."""
    found = list[nn.Module]()
    for model in (trunk.lm, *(cast(Trunk, body).lm for body in trunk.bodies.values())):
        names = set(getattr(model, "_no_split_modules", None) or ())
        inside = (m for m in model.modules() if isinstance(m, nn.ModuleList))
        found += [m for each in inside for m in each if type(m).__name__ in names]
    return found


def sharded(trunk: nn.Module) -> bool:
    """Whether a trunk's weights are spread over processes."""
    return isinstance(trunk, FSDPModule)


@contextmanager
def whole(trunk: nn.Module) -> Iterator[None]:
    """Every process holds all weights of a trunk meanwhile, and may run forwards of its own, without gradients.

    All processes begin it together. It costs the memory of the weights in the dtype that they are held in.
    """
    if not isinstance(trunk, FSDPModule) or _kept(trunk):
        yield
        return
    _keep(trunk, True)
    for part in parts_of(trunk):
        part.unshard()
    try:
        yield
    finally:
        _keep(trunk, False)
        for part in parts_of(trunk):
            part.reshard()


def parts_of(trunk: nn.Module) -> Iterator[FSDPModule]:
    """What of a sharded trunk is put together at a time: each layer, and the rest."""
    return (m for m in trunk.modules() if isinstance(m, FSDPModule))


_KEPT = "_prefiere_kept"


def _kept(trunk: nn.Module) -> bool:
    return bool(vars(trunk).get(_KEPT, False))


def _keep(trunk: nn.Module, on: bool) -> None:
    """Whether weights stay together after a forward. By default the trunk's own would, and be old after an update that
    did not go through a backward, such as a checkpoint that is read."""
    cast(FSDPModule, trunk).set_reshard_after_forward(not on)
    setattr(trunk, _KEPT, on)


# -- tensors ----------------------------------------------------------------------------------------------------------


def in_parts(tensor: object) -> bool:
    """Whether something is a tensor of which each process holds a part."""
    return isinstance(tensor, DTensor)


def full(tensor: Tensor) -> Tensor:
    """A tensor in full, of whatever is spread over processes, all of which call it; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, whole_tensor: Tensor) -> Tensor:
    """A tensor that every process has in full, spread as ``tensor`` is, its parts where that one's are."""
    if not isinstance(tensor, DTensor):
        return whole_tensor
    found = distribute_tensor(whole_tensor, tensor.device_mesh, tensor.placements, src_data_rank=None)
    return resting(found, own(tensor).device)


def gathered(named: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Tensors by name, in full and on the processor where ``keep`` says so, else nothing. All processes call it.

    A tensor that stands under two names stays one. One at a time is put together on the device.
    """
    made: dict[int, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in named:
        if id(tensor) not in made:
            found = full(tensor.detach())
            made[id(tensor)] = found.cpu() if keep else found.new_empty(0)
        out[name] = made[id(tensor)]
    return out if keep else {}


def weights_of(model: nn.Module) -> Mapping[str, Tensor]:
    """A model's weights and buffers by the names that they are saved under, each as the object that it is."""
    found: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return found
