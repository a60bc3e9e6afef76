"""One update, prefill and decoding step of a run, carried out without contents: what they hold, and what they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prefiere.estimate.counter import CostCounter
from prefiere.estimate.meta_model import bytes_of, materialise, meta_scorer, meta_trunk
from prefiere.estimate.spread import Units, let_go
from prefiere.estimate.workload import ROWS_AT_ONCE, Workload
from prefiere.kernels.split import Split
from prefiere.models.source import config_of
from prefiere.models.trunk import CRITIC, POLICY, Trunk
from prefiere.plan.plan import Plan
from prefiere.sample.kv_cache import alike
from prefiere.sample.packed_weights import LEAST_ENTRIES
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import PackedBatch, pack


def simulate(work: Workload, groups: list[PromptGroup], parts: int) -> Simulation:
    """One update on ``groups``, one of ``parts`` micro-batches, and what else such a run does."""
    plan = work.plan
    batch = pack(groups)
    trunk = meta_trunk(plan)
    beside = sum(bytes_of(meta_scorer(r.source, r.adapter, plan.dtype)) for r in plan.roles.beside if r.source)
    update, forwards, prefill, decode = CostCounter(), CostCounter(), CostCounter(), CostCounter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(trunk)
        for tensor in (*trunk.parameters(), *trunk.buffers()):
            update.book(tensor)
        trunk_bytes = update.now
        trained = sum(p.numel() for p in trunk.parameters() if p.requires_grad)
        copied = bytes_of(trunk.model) if plan.roles.reference == "copy" else 0
        units = Units.of(trunk)
        if plan.shard != "none":
            let_go(trunk)
        if (size := plan.settings.sequence_parallel_size) > 1:  # the last process has the most tokens
            trunk.split = Split(size - 1, size, _exchanged, torch.clone)
        for _ in range(min(parts, 2)):  # with several, the gradients of the first are there during the second
            update.clear()
            backward(trunk, batch, plan, update)
        trunk.zero_grad()
        with torch.no_grad(), torch.autocast("cpu", plan.dtype, enabled=plan.compute is not None):
            with forwards:
                forward(trunk, batch, plan)
            if work.rows:
                with prefill:
                    _answer(trunk, *_heaviest(work))
                with decode:
                    _answer(trunk, work.rows, 1)
    laid_out = _laid_out(trunk, plan.dtype)
    return Simulation(trunk_bytes, copied, beside, trained, units, laid_out, update, forwards, prefill, decode)


@dataclass(frozen=True)
class Simulation:
    """trunk, reference, beside: bytes of the trunk with all roles on it, of a reference that is a copy, and of the
    reward models beside it. trained: parameters that are trained. units: what a trunk that is spread puts together at a
    time. laid_out: bytes of the layers that a rollout on a CPU lays out anew. update: forward and backward. forwards:
    the forward alone. prefill: the largest one. decode: one token for every row."""

    trunk: int
    reference: int
    beside: int
    trained: int
    units: Units
    laid_out: int
    update: CostCounter
    forwards: CostCounter
    prefill: CostCounter
    decode: CostCounter

    @property
    def weights(self) -> int:
        """Bytes of all models that the run holds."""
        return self.trunk + self.reference + self.beside


def forward(trunk: Trunk, batch: PackedBatch, plan: Plan) -> torch.Tensor:
    """What an update needs of the policy, or of a reward model."""
    if plan.scores:
        return trunk.scores(batch, POLICY)
    found: torch.Tensor = trunk(batch).logp_N
    return found


def backward(trunk: Trunk, batch: PackedBatch, plan: Plan, ledger: CostCounter) -> None:
    """The objectives of an update in turn, booked."""
    mixed, cached = plan.compute is not None, plan.shard == "none"
    with ledger:
        with torch.autocast("cpu", plan.dtype, enabled=mixed, cache_enabled=cached):
            loss = forward(trunk, batch, plan).sum()
        loss.backward()
        if CRITIC in trunk.heads:
            del loss
            with torch.autocast("cpu", plan.dtype, enabled=mixed, cache_enabled=cached):
                loss = trunk.values(batch, CRITIC).sum()
            loss.backward()


def _exchanged(rows: torch.Tensor, give: list[int], take: list[int]) -> torch.Tensor:
    return rows.new_empty(sum(take), *rows.shape[1:])


def _answer(trunk: Trunk, rows: int, length: int) -> None:
    ids = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    trunk.lm(input_ids=ids, attention_mask=mask, position_ids=mask, use_cache=False, logits_to_keep=1)


def _heaviest(work: Workload) -> tuple[int, int]:
    """Rows and columns of the largest prefill."""
    ordered = [np.zeros(n) for n in sorted(work.prompts)[-ROWS_AT_ONCE:]]
    parts = [(len(part), max(len(p) for p in part)) for part in alike(ordered)]
    return max(parts, key=lambda part: part[0] * part[1])


def _laid_out(trunk: Trunk, compute: torch.dtype) -> int:
    layers = [m for m in trunk.lm.modules() if type(m) is nn.Linear and m.weight.numel() >= LEAST_ENTRIES]
    return sum(m.weight.numel() for m in layers) * compute.itemsize


def cache(work: Workload) -> int:
    """Bytes of keys and values of all rows, with a layer that is copied; and of a step's logits and probabilities."""
    plan = work.plan
    config = config_of(plan.policy).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    columns = max(work.prompts, default=0) + plan.settings.max_new_tokens
    layer = 2 * work.rows * columns * heads * size * plan.dtype.itemsize
    return layer * (config.num_hidden_layers + 2)
