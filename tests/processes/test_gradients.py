"""Gradients that only some of the processes have: experts that no token of a process chose, a head that it did not ask.

Two processes against one, over updates between which it changes who has what.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import tiny
from prefiere.algorithms.sft import Imitate
from prefiere.kernels import attention
from prefiere.models.shard.spread import full, in_parts, mesh_of, shard
from prefiere.models.trunk import CRITIC, Trunk
from prefiere.processes import gradients as messages
from prefiere.tokens.pack import PackedBatch
from prefiere.train.engine import Engine
from prefiere.train.objective import Result, Term
from prefiere.world import World, leave_group
from random_groups import store

EXPERTS = 48
"""More than the tokens of a process choose in an update, and than those of all."""
GROUPS = store(12, 1, prompt=3, completion=2)
UPDATES = [np.arange(4), np.arange(4, 8), np.arange(8, 12)]
CASES = [*product(("full", "lora"), ("none", "full"), ("plain", "checkpointed")), ("head", "none", "plain")]
"""What of the model is trained, the processes' shard, and how."""


class Experts(nn.Module):
    """Experts that are modules of their own, as in models that bring their code: one is run where a token chose it."""

    def __init__(self, hidden: int):
        super().__init__()
        self.router = nn.Linear(hidden, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        share, chosen = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for n in chosen.unique().tolist():
            (at,) = torch.where(chosen == n)
            out = out.index_add(0, at, share[at, None] * self.experts[n](flat[at]))
        return out.view_as(x)


class SometimesValues(Imitate):
    """Besides, the critic's head learns from groups of even numbers: a micro-batch without any does not ask it."""

    def forward(self, trunk: Trunk, batch: PackedBatch) -> Any:
        out = super().forward(trunk, batch)
        even = batch.index_G[batch.owner_N] % 2 == 0
        self.terms = [Term(trunk.values(batch, CRITIC)[even] ** 2, "groups")] if bool(even.any()) else []
        return out

    def __call__(self, out: Any, batch: PackedBatch) -> Result:
        result = super().__call__(out, batch)
        return result._replace(terms=[*result.terms, *self.terms])


def trained(case: tuple[str, str, str]) -> tuple[Engine, list[set[str]]]:
    """An engine, and a list to which each of its updates adds the names of the parameters that this process reached."""
    what, how, checkpointed = case
    torch.manual_seed(0)
    attention.register()
    model: Any = tiny.model("llama")
    for layer in model.model.layers:
        layer.mlp = Experts(32)
    model.set_attn_implementation(attention.NAME)
    if what == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    trunk = Trunk(model).train()
    if what == "head":
        trunk.heads[CRITIC] = nn.Linear(32, 1)
    if checkpointed == "checkpointed":
        trunk.checkpoint_gradients()
        if what == "lora":
            trunk.lm.enable_input_require_grads()
    world = World.open(cpu=True)
    if world.size > 1 and how == "full":
        shard(trunk, mesh_of(trunk.device, 2, 1, "full"))
    # A parameter without a gradient neither decays nor goes on with its momentum.
    parameters = [p for p in trunk.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    e = Engine(
        trunk, optimizer, schedule, world=world, compute=None, max_grad_norm=None, budget=12, adapt=False
    )  # fmt: skip
    return e, noted(e)


def noted(e: Engine) -> list[set[str]]:
    """What `trained` says of the second part."""
    kept, now = list[set[str]](), set[str]()
    for name, p in e.trunk.named_parameters():
        if p.requires_grad and not in_parts(p):
            p.register_post_accumulate_grad_hook(lambda _, name=name: now.add(name))
    real = e._accumulate

    def accumulate(*given: Any) -> Any:
        now.clear()
        found = real(*given)
        kept.append(set(now))
        return found

    e._accumulate = accumulate  # type: ignore[method-assign]
    return kept


def updated(case: tuple[str, str, str]) -> dict[str, Any]:
    """Losses and weights after some updates, and what this process reached in each."""
    e, kept = trained(case)
    goal = SometimesValues() if case[0] == "head" else Imitate()
    losses = [e.update(GROUPS, members, goal).loss for members in UPDATES]
    weights = {n: full(p.detach()).clone() for n, p in e.trunk.named_parameters() if p.requires_grad}
    return {"losses": losses, "weights": weights, "reached": [sorted(names) for names in kept]}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OUT": str(out)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_gradient_that_one_process_lacks_is_that_of_the_others(two: Path, case: tuple[str, str, str]) -> None:
    one = updated(case)
    found = [torch.load(two / f"{'-'.join(case)}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, w in one["weights"].items():
        assert torch.equal(found[0]["weights"][name], found[1]["weights"][name]), name
        assert float((w - found[0]["weights"][name]).norm()) <= 1e-5 * max(float(w.norm()), 0.1), name


@pytest.mark.long
def test_the_cases_hold_what_they_are_for(two: Path) -> None:
    """In every update some parameters are reached by one process alone, and, of experts, some by none."""
    for what in ("full", "lora", "head"):
        first, second = (
            torch.load(two / f"{what}-none-plain-{rank}.pt", weights_only=True)["reached"] for rank in (0, 1)
        )
        both = list(zip(first, second, strict=True))
        by_one = [set(a) ^ set(b) for a, b in both]
        chosen = [re.findall(r"layers\.0\.mlp\.experts\.(\d+)\.", " ".join(a + b)) for a, b in both]
        by_none = [EXPERTS - len(set(numbers)) for numbers in chosen]
        assert all(by_one)
        assert by_one[0] != by_one[1]
        assert min(by_none) > 0


def _in_a_process_group() -> None:
    messages.BUCKET_BYTES = 20_000  # many of them
    for case in CASES:
        torch.save(updated(case), Path(os.environ["OUT"]) / f"{'-'.join(case)}-{os.environ['RANK']}.pt")
    leave_group()


if __name__ == "__main__":
    _in_a_process_group()
