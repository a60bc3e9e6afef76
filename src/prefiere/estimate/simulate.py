"""One update, prefill and decoding step of a run, carried out without contents: what they hold, and what they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig

from prefiere.estimate.counter import Ledger
from prefiere.estimate.meta_model import hollow, materialise
from prefiere.models.adapter import Adapter
from prefiere.models.source import Source
from prefiere.models.trunk import CRITIC, POLICY, Trunk
from prefiere.sample.kv_cache import alike
from prefiere.sample.packed_weights import SMALL
from prefiere.settings import PPO, PolicyGradient, Reward, Settings
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import PackedBatch, pack
from prefiere.tokens.schedule import members, split

ROWS = 64
"""Sequences that decode at once."""
STEPS = 200
"""Updates whose micro-batches are looked at for the longest."""


@dataclass(frozen=True)
class Workload:
    """What is known of a run before it starts: how its base and adapters are held, and its data's groups.

    adapters: the policy's, and the critic's. mounted: frozen reward models on the same base. beside: bytes of reward
    models that are loaded beside it. prompts: those that are answered at once, in tokens. held: tokens held out.
    """

    settings: Settings
    source: Source
    compute: torch.dtype
    adapters: tuple[Adapter, ...]
    store: GroupStore | list[PromptGroup]
    budget: int
    steps: int
    packed: bool = True
    prompts: tuple[int, ...] = ()
    mounted: tuple[Adapter, ...] = ()
    beside: int = 0
    held: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each group."""
        return np.asarray([g.length for g in self.store]) if isinstance(self.store, list) else self.store.lengths

    @property
    def rows(self) -> int:
        """Answers that are sampled at once; 0 for a run that samples none."""
        s = self.settings
        if isinstance(s, Reward) or (s.sample_steps == 0 and not isinstance(s, PolicyGradient)):
            return 0
        each = s.num_generations if isinstance(s, PolicyGradient) else s.samples_per_prompt
        return min(ROWS, len(self.prompts) * each)


def longest(work: Workload) -> tuple[list[PromptGroup], int, float]:
    """The heaviest micro-batch of the first updates, how many there are in its update, and the tokens of an update."""
    lengths, size = work.lengths, work.settings.batch_size
    best: tuple[int, tuple[int, ...], int] = (0, (0,), 1)
    totals = []
    for step in range(min(work.steps, STEPS)):
        chosen = members(len(lengths), size, seed=work.settings.seed, step=step)
        parts = split(chosen, lengths, budget=work.budget).ranks[0]
        totals.append(int(lengths[chosen].sum()))
        for part in parts:
            total = int(lengths[list(part)].sum())
            if (total, len(parts)) > (best[0], best[2]):
                best = (total, part, len(parts))
    return [work.store[i] for i in best[1]], best[2], float(np.mean(totals))


def simulate(work: Workload, groups: list[PromptGroup], parts: int) -> Simulation:
    """One update on ``groups``, one of ``parts`` micro-batches, and what else such a run does."""
    s = work.settings
    batch = pack(groups)
    trunk = hollow(
        work.source,
        compute=work.compute,
        adapters=work.adapters,
        reward=isinstance(s, Reward),
        checkpointing=s.gradient_checkpointing,
        packed=work.packed,
        mounted=work.mounted,
        critic=("shared" if s.share_critic else "own") if isinstance(s, PPO) else None,
    )
    ledger, look, fill, step = Ledger(), Ledger(), Ledger(), Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(trunk)
        for tensor in (*trunk.parameters(), *trunk.buffers()):
            ledger.book(tensor)
        weights = ledger.now
        trained = sum(p.numel() for p in trunk.parameters() if p.requires_grad)
        policy = sum(p.numel() for p in trunk.model.parameters())
        for _ in range(min(parts, 2)):  # with several, the gradients of the first are there during the second
            ledger.clear()
            backward(trunk, batch, work, ledger)
        trunk.zero_grad()
        with torch.no_grad(), torch.autocast("cpu", work.compute, enabled=work.compute != torch.float32):
            with look:
                forward(trunk, batch, work)
            if work.rows:
                with fill:
                    _answer(trunk, *_heaviest(work))
                with step:
                    _answer(trunk, work.rows, 1)
    return Simulation(weights, trained, policy, _copied(trunk, work.compute), ledger, look, fill, step)


@dataclass(frozen=True)
class Simulation:
    """weights: bytes of all that is held. trained, policy: parameters that are trained, and the policy's own. copied:
    bytes of the layers that a rollout on a CPU lays out anew. update: forward and backward; look: forward alone; fill:
    the largest prefill; step: one token for every row."""

    weights: int
    trained: int
    policy: int
    copied: int
    update: Ledger
    look: Ledger
    fill: Ledger
    step: Ledger


def forward(trunk: Trunk, batch: PackedBatch, work: Workload) -> torch.Tensor:
    """What an update needs of the policy, or of a reward model."""
    if isinstance(work.settings, Reward):
        return trunk.scores(batch, POLICY)
    found: torch.Tensor = trunk(batch).logp_N
    return found


def backward(trunk: Trunk, batch: PackedBatch, work: Workload, ledger: Ledger) -> None:
    """The objectives of an update in turn, booked."""
    mixed = work.compute != torch.float32
    with ledger:
        with torch.autocast("cpu", work.compute, enabled=mixed):
            loss = forward(trunk, batch, work).sum()
        loss.backward()
        if CRITIC in trunk.heads:
            del loss
            with torch.autocast("cpu", work.compute, enabled=mixed):
                loss = trunk.values(batch, CRITIC).sum()
            loss.backward()


def _answer(trunk: Trunk, rows: int, length: int) -> None:
    ids = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    trunk.lm(input_ids=ids, attention_mask=mask, position_ids=mask, use_cache=False, logits_to_keep=1)


def _heaviest(work: Workload) -> tuple[int, int]:
    """Rows and columns of the largest prefill."""
    ordered = [np.zeros(n) for n in sorted(work.prompts)[-ROWS:]]
    parts = [(len(part), max(len(p) for p in part)) for part in alike(ordered)]
    return max(parts, key=lambda part: part[0] * part[1])


def _copied(trunk: Trunk, compute: torch.dtype) -> int:
    layers = [m for m in trunk.lm.modules() if type(m) is nn.Linear and m.weight.numel() >= SMALL]
    return sum(m.weight.numel() for m in layers) * compute.itemsize


def cache(work: Workload) -> int:
    """Bytes of keys and values of all rows, with a layer that is copied; and of a step's logits and probabilities."""
    config = AutoConfig.from_pretrained(work.source.base, trust_remote_code=work.source.trust).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    columns = max(work.prompts, default=0) + work.settings.max_new_tokens
    layer = 2 * work.rows * columns * heads * size * work.compute.itemsize
    return layer * (config.num_hidden_layers + 2)
