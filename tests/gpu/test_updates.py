"""Updates on a GPU: memory that really runs out, fp16 that really overflows, and the same update as a processor's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import tiny
from prefiere.algorithms.dpo import Pairs
from prefiere.algorithms.sft import Imitate
from prefiere.kernels import attention
from prefiere.kernels.memory import OutOfMemory
from prefiere.models.trunk import Trunk
from prefiere.objectives.preference import LOSSES
from prefiere.settings import DPO
from prefiere.train.engine import Engine
from prefiere.train.optimizer import make_optimizer
from prefiere.world import World
from random_groups import store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

MANY = store(400, 2, prompt=80, completion=60, seed=2)
FEW = store(12, 2, partly=True)


def engine(model, *, budget=10**6, compute=None, adapt=False, optimizer=None, **options) -> Engine:
    attention.register()
    model.set_attn_implementation(attention.NAME)
    trunk = Trunk(model)
    # SGD with rate 1 makes the gradient visible as the change of the weights.
    optimizer = optimizer or torch.optim.SGD(trunk.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return Engine(
        trunk, optimizer, schedule, world=World.open(), compute=compute, max_grad_norm=None, budget=budget,
        adapt=adapt, **options,
    )  # fmt: skip


def goal(groups) -> Pairs:
    reference = np.random.default_rng(1).normal(-40, 10, (len(groups), 2)).astype(np.float32)
    return Pairs(LOSSES["sigmoid"], {"beta": 0.1}, 0.1, reference)


def step(e: Engine, groups, *goals) -> tuple[float, dict[str, torch.Tensor]]:
    before = copy.deepcopy(e.trunk.state_dict())
    update = e.update(groups, np.arange(len(groups)), *goals)
    return update.metrics["loss"].mean, {n: (before[n] - p).cpu() for n, p in e.trunk.state_dict().items()}


def assert_equal(one, two, tolerance: float) -> None:
    assert one[0] == pytest.approx(two[0], rel=tolerance)
    whole = math.sqrt(sum(float(g.norm()) ** 2 for g in one[1].values()))
    for name, g in one[1].items():
        assert (g - two[1][name]).norm() <= tolerance * max(float(g.norm()), 0.01 * whole), name


def wide() -> torch.nn.Module:
    """A model whose activations of some ten thousand tokens take gigabytes."""
    return tiny.model("llama", hidden=256, layers=4, initializer_range=0.05).cuda()


@pytest.fixture
def limited() -> Iterator[object]:
    """Sets how many more bytes this process may take than it has now."""

    def limit(more: float) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def taken(e: Engine) -> int:
    """Bytes that an update takes on top of what is there."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    step(e, MANY, goal(MANY))
    return torch.cuda.max_memory_reserved() - before


def test_a_gpu_updates_as_a_processor_does() -> None:
    assert_equal(step(engine(tiny.model("llama").cuda()), FEW, goal(FEW)), on_cpu(), 5e-5)


def on_cpu() -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient in float64 on a processor, each pair on its own, from plain forwards."""
    model, aim = tiny.model("llama").double(), goal(FEW)
    losses, weights = [], []
    for i, g in enumerate(FEW):
        ratios = []
        for j, (completion, mask) in enumerate(zip(g.completions, g.masks, strict=True)):
            logits = model(input_ids=torch.tensor([*g.prompt, *completion])[None]).logits[0, len(g.prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion).long()]
            ratios.append((logp * torch.tensor(mask)).sum() - float(aim.reference[i, j]))
        losses.append(-torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])))
        weights.append(g.weight)
    w = torch.tensor(weights, dtype=torch.float64)
    loss = (torch.stack(losses) * w).sum() / w.sum()
    loss.backward()
    return loss.item(), {f"model.{n}": p.grad.float() for n, p in model.named_parameters()}


def test_memory_that_runs_out_halves_the_budget_and_repeats_the_update(limited) -> None:
    size = int(MANY.lengths.sum())
    whole = step(engine(wide()), MANY, goal(MANY))
    need = taken(engine(wide()))
    assert need > 2**30, "the model's own weights are what is measured"
    said: list[str] = []
    e = engine(wide(), budget=size + 1, adapt=True, notice=said.append)
    limited(0.6 * need)
    cut = step(e, MANY, goal(MANY))
    assert e.budget.tokens in ((size + 1) // 2, (size + 1) // 2 // 2)
    assert said == [f"out of memory: going on with tokens_per_microbatch={(size + 1) // 2 // 2**i}"
                    for i in range(len(said))]  # fmt: skip
    assert_equal(whole, cut, 5e-5)


def test_memory_that_one_example_does_not_fit_into_is_said(limited) -> None:
    e = engine(wide(), budget=int(MANY.lengths.max()), adapt=True)
    e.update(MANY, np.arange(2), goal(MANY))
    limited(0)
    with pytest.raises(OutOfMemory, match="out of memory on a single example"):
        e.update(store(1, 2, prompt=400, completion=400, seed=0), np.arange(1), goal(MANY))


def test_fp16_backs_off_until_it_fits_and_loses_no_update() -> None:
    """A loss so large that fp16 overflows at the first scale, 65,536; then AdamW as a run has it steps."""
    groups = store(12, 1, partly=True)

    class Steep(Imitate):
        def __call__(self, out, batch):
            result = super().__call__(out, batch)
            return result._replace(terms=[t._replace(values=100 * t.values) for t in result.terms])

    steep = Steep()
    exact = step(engine(tiny.model("llama").cuda()), groups, steep)
    e = engine(tiny.model("llama").cuda(), compute=torch.float16)
    loss, gradients = step(e, groups, steep)
    assert e.backoffs > 0, "nothing overflowed: the test does not test"
    assert 1 <= e.scaler.get_scale() < 65536
    assert loss == pytest.approx(exact[0], rel=0.01)
    name = "model.lm_head.weight"
    assert (gradients[name] - exact[1][name]).norm() < 0.02 * exact[1][name].norm()


@pytest.mark.parametrize("compute", [torch.float16, torch.bfloat16], ids=str)
def test_adamw_steps_down_in_16_bits(compute) -> None:
    model = tiny.model("llama").cuda()
    optimizer = make_optimizer(model, DPO(model="", data="", out=""), 1e-3)
    e = engine(model, compute=compute, optimizer=optimizer)
    losses = [e.update(FEW, np.arange(len(FEW)), goal(FEW)).metrics["loss"].mean for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.isfinite(p).all() for p in model.parameters())
