"""Sharded weights that rest in the processor's memory while a GPU computes: a group of one process, and plain runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

import tiny
from prefiere.algorithms.sft import Imitate
from prefiere.kernels import attention
from prefiere.models.shard.spread import full, like, mesh_of, own, shard, whole
from prefiere.models.trunk import Trunk
from prefiere.settings import DPO
from prefiere.train.engine import Engine
from prefiere.train.optimizer import make_optimizer
from prefiere.world import World
from random_groups import store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

DEVICE = "cuda"
GROUPS = store(12, 1, partly=True)


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def trained(*, offload: bool) -> Engine:
    """After three updates, clipped."""
    attention.register()
    model = tiny.model("llama").to("cpu" if offload else DEVICE)
    model.set_attn_implementation(attention.NAME)
    trunk = Trunk(model).train()
    if offload:
        shard(trunk, mesh_of(torch.device(DEVICE), 1, 1, "full"), offload=True)
    optimizer = make_optimizer(trunk, DPO(model="m", data="d", out="o"), 1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    e = Engine(
        trunk, optimizer, schedule, world=World.open(), compute=None, max_grad_norm=0.1, budget=100, adapt=False
    )  # fmt: skip
    for n in range(3):
        e.update(GROUPS, np.arange(4 * n, 4 * n + 4), Imitate())
    return e


def test_updates_are_those_of_weights_on_the_gpu() -> None:
    plain, resting = trained(offload=False), trained(offload=True)
    assert resting.trunk.device.type == DEVICE
    for p, q in zip(plain.trunk.parameters(), resting.trunk.parameters(), strict=True):
        assert own(q).device.type == "cpu"
        assert all(own(x).device.type == "cpu" for x in resting.optimizer.state[q].values())
        assert float((p.cpu() - full(q.detach()).cpu()).norm()) <= 1e-5 * float(p.norm())


def test_all_weights_are_on_the_gpu_while_they_are_whole() -> None:
    trunk = trained(offload=True).trunk
    with whole(trunk):
        assert {p.device.type for p in trunk.parameters()} == {DEVICE}
    assert {own(p).device.type for p in trunk.parameters()} == {"cpu"}


def test_what_is_read_for_a_part_rests_where_the_part_does() -> None:
    p = next(trained(offload=True).trunk.parameters()).detach()
    read = like(p, torch.ones(p.shape))
    assert own(read).device.type == "cpu"
    assert torch.equal(own(read), torch.ones_like(own(p)))
