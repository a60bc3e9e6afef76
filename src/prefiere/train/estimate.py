"""What a run will need, before it is started: peak memory and time, and what to change until it fits.

No weight is loaded. One update is carried out without contents, on the data's longest micro-batch, and its memory is
booked; what cannot be carried out so (sampling, loading) follows from shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig

from prefiere.data.batch import PackedBatch, pack
from prefiere.data.groups import GroupStore, PromptGroup
from prefiere.data.plan import members, split
from prefiere.models.hollow import hollow, materialise
from prefiere.models.load import Adapter, Source, base_scheme
from prefiere.models.roles import POLICY, Trunk
from prefiere.objectives.preference import LOSSES
from prefiere.settings import DPO, PolicyGradient, Reward, Settings
from prefiere.train.ledger import Ledger

GIB = 2**30
ROWS = 64
"""Sequences that decode at once."""
STEPS = 200
"""Updates whose micro-batches are looked at for the longest."""


@dataclass(frozen=True, slots=True)
class Card:
    """A device: memory, peak of 16-bit matrix products (FLOP/s), memory bandwidth (bytes/s), whether it has bfloat16.
    The figures are its maker's. ``reserved``: what driver and libraries take off the memory."""

    name: str
    memory: int
    peak: float
    bandwidth: float
    bf16: bool
    reserved: int = GIB // 2


CARDS = {
    "t4": Card("T4", 15 * GIB, 65e12, 320e9, False),  # of 16 GB, the driver shows 15 GiB
    "v100": Card("V100", 16 * GIB, 125e12, 900e9, False),
    "l4": Card("L4", int(22.5 * GIB), 121e12, 300e9, True),
    "a10g": Card("A10G", int(22.5 * GIB), 125e12, 600e9, True),
    "rtx4090": Card("RTX 4090", 24 * GIB, 165e12, 1008e9, True),
    "l40s": Card("L40S", int(44.5 * GIB), 362e12, 864e9, True),
    "a100": Card("A100 40GB", int(39.5 * GIB), 312e12, 1555e9, True),
    "a100-80": Card("A100 80GB", int(79.2 * GIB), 312e12, 2039e9, True),
    "h100": Card("H100", int(79.2 * GIB), 989e12, 3350e9, True),
    "h200": Card("H200", int(139.8 * GIB), 989e12, 4800e9, True),
}
SHARE = 0.35
"""Share of the peak that training reaches: between what was measured on a processor (0.34 to 0.62) and the lower share
of packed rows of uneven length on a card."""
CPU_FIXED = 60 * 2**20
"""What the process grows by on a CPU whatever it trains: threads, kernels' scratch space, and what is imported late."""
CPU_SLACK = 1.08
"""Memory that a CPU's allocator holds for each byte of an update in use."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``weights``: the model as it is held, with frozen roles. ``trained``: fp32 gradients and Adam's moments of
    what is trained. ``update``: activations, logits and gradients' scratch at the peak of an update. ``sampling``: KV
    cache and logits. ``loading``: what reading the weights takes for a moment. ``fixed``: the rest."""

    weights: int
    trained: int
    update: int
    sampling: int
    loading: int
    fixed: int

    @property
    def peak(self) -> int:
        """The most that is needed at once: loading, updating and sampling take turns."""
        state = self.weights + self.trained
        return max(state + self.update, state + self.sampling, self.loading) + self.fixed


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run needs. seconds: of the whole run, updates and sampled answers. tokens: of the longest micro-batch."""

    memory: Memory
    seconds: float
    steps: int
    tokens: int


@dataclass(frozen=True)
class Workload:
    """What is known of a run before it starts: how its base and adapters are held, and its data's groups."""

    settings: Settings
    source: Source
    compute: torch.dtype
    adapters: tuple[Adapter, ...]
    store: GroupStore | list[PromptGroup]
    budget: int
    steps: int
    packed: bool = True
    prompt: int = 64

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each group."""
        return np.asarray([g.length for g in self.store]) if isinstance(self.store, list) else self.store.lengths


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


def simulate(work: Workload, groups: list[PromptGroup], parts: int) -> tuple[int, int, Ledger]:
    """Weights (bytes), trained parameters, and the ledger of one update on ``groups``."""
    s = work.settings
    batch = pack(groups)
    trunk = hollow(
        work.source,
        compute=work.compute,
        adapters=work.adapters,
        reward=isinstance(s, Reward),
        checkpointing=s.gradient_checkpointing,
        packed=work.packed,
    )
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(trunk)
        for tensor in (*trunk.parameters(), *trunk.buffers()):
            ledger.book(tensor)
        weights = ledger.now
        trained = sum(p.numel() for p in trunk.parameters() if p.requires_grad)
        for _ in range(min(parts, 2)):  # with several, the gradients of the first are there during the second
            ledger.flops = 0
            _backward(trunk, batch, work, ledger)
        return weights, trained, ledger


def _backward(trunk: Trunk, batch: PackedBatch, work: Workload, ledger: Ledger) -> None:
    mixed = work.compute != torch.float32
    with ledger:
        with torch.autocast("cpu", work.compute, enabled=mixed):
            out = trunk.scores(batch, POLICY) if isinstance(work.settings, Reward) else trunk(batch).logp_N
            loss = out.sum()
        loss.backward()


def _sampling(work: Workload) -> int:
    """KV cache, its copy of a layer, and the logits and probabilities of a step, in bytes."""
    s = work.settings
    if isinstance(s, Reward) or (s.sample_steps == 0 and not isinstance(s, PolicyGradient)):
        return 0
    config = AutoConfig.from_pretrained(work.source.base, trust_remote_code=work.source.trust).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    prompts = s.sample_prompts if isinstance(s.sample_prompts, int) else 32
    rows = min(ROWS, prompts * s.samples_per_prompt)
    if isinstance(s, PolicyGradient):
        rows = ROWS
    each = torch.finfo(work.compute).bits // 8
    layer = 2 * rows * (work.prompt + s.max_new_tokens) * heads * size * each
    return layer * (config.num_hidden_layers + 2) + rows * config.vocab_size * 40


def _stored(source: Source) -> int:
    """Bytes of the weights on disk, where they are on this disk."""
    return sum(p.stat().st_size for p in Path(source.base).glob("*.safetensors"))


def estimate(work: Workload, card: Card | None) -> Estimate:
    """Memory and time of a run on a card, or on this machine's processor where there is none."""
    s = work.settings
    groups, parts, tokens = longest(work)
    weights, trained, ledger = simulate(work, groups, parts)
    update = ledger.peak - weights
    here = sum(g.length for g in groups)
    state = 8 * trained  # two moments in fp32; gradients are in the update
    if not work.adapters and _needs_copy(s):
        weights += 4 * trained
    if isinstance(s, PolicyGradient) and s.method == "ppo" and not work.adapters:
        weights, state = weights + 4 * trained, 2 * state
    loading = _stored(work.source) + weights if card is None else weights
    fixed = CPU_FIXED if card is None else 0
    if card is None:
        update = int(CPU_SLACK * update)
    memory = Memory(weights, state, update, _sampling(work), loading, fixed)
    rate = (card.peak if card else _processor(work.compute)) * SHARE
    epochs = s.num_ppo_epochs if isinstance(s, PolicyGradient) else 1
    seconds = work.steps * ledger.flops / here * tokens * epochs / rate
    return Estimate(memory, seconds + _decoding(work, weights, card), work.steps, here)


def _needs_copy(s: Settings) -> bool:
    return isinstance(s, PolicyGradient) or (
        isinstance(s, DPO) and LOSSES[s.loss_type].needs_reference and s.sample_steps != 0
    )


def _decoding(work: Workload, weights: int, card: Card | None) -> float:
    """Seconds of sampled answers: each step reads every weight once; ten moments along the run, or every step."""
    s = work.settings
    if isinstance(s, Reward):
        return 0.0
    batches = -(-s.batch_size * s.num_generations // ROWS) if isinstance(s, PolicyGradient) else 1
    moments = work.steps * batches if isinstance(s, PolicyGradient) else 0 if s.sample_steps == 0 else 11
    return moments * s.max_new_tokens * max(weights / (card.bandwidth if card else 20e9), 2e-3)


def _processor(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product on this processor, measured for a moment."""
    import time

    x = torch.ones(512, 512, dtype=dtype)
    x @ x
    began = time.perf_counter()
    for _ in range(8):
        x @ x
    return 8 * 2 * 512**3 / (time.perf_counter() - began)


def remedies(work: Workload) -> Iterator[tuple[str, Workload]]:
    """What to change, one after the other, each on top of the last, until a run fits; in words and as a workload."""
    most = int(work.lengths.max())
    while work.budget > most:
        work = replace(work, budget=max(most, work.budget // 2))
        yield f"tokens_per_microbatch={work.budget}", work
    if not work.settings.gradient_checkpointing:
        work = _set(work, gradient_checkpointing=True)
        yield "gradient_checkpointing=true", work
    if work.adapters and base_scheme(work.source) is None:
        work = replace(_set(work, quantize="nf4"), source=replace(work.source, quantize="nf4"))
        yield "quantize=nf4", work
    while work.adapters and work.settings.peft_config is None and work.settings.lora_r > 4:
        r = work.settings.lora_r // 2
        work = _set(work, lora_r=r)
        made = Adapter.lora(r=r, alpha=2 * r, dropout=0, targets=work.settings.lora_target_modules, dora=False,
                            rslora=False)  # fmt: skip
        work = replace(work, adapters=(made,) * len(work.adapters))
        yield f"lora_r={r}", work
    while most > 128:
        most //= 2
        work = replace(_set(work, max_length=most), store=[_cut(g, most) for g in work.store], budget=most)
        yield f"max_length={most}", work


def _set(work: Workload, **values: Any) -> Workload:
    return replace(work, settings=work.settings.model_copy(update=values))


def _cut(group: PromptGroup, length: int) -> PromptGroup:
    """A group whose every answer with its prompt has at most ``length`` tokens."""
    room = max(1, length - len(group.prompt[: length // 2]))
    answers = tuple(c[:room] for c in group.completions)
    return PromptGroup(group.prompt[: length // 2], answers, tuple(np.ones(len(c), bool) for c in answers))


def until_it_fits(
    work: Workload, card: Card | None, available: int, tell: Callable[[str], None] = lambda text: None
) -> tuple[list[str], Workload, Estimate, bool]:
    """The changes under which a run fits into ``available`` bytes, what it then is, and whether it does at all."""
    made: list[str] = []
    found = estimate(work, card)
    for words, changed in remedies(work) if found.memory.peak > available else ():
        tell(f"trying {words}")
        made = [m for m in made if m.split("=")[0] != words.split("=")[0]] + [words]
        work, found = changed, estimate(changed, card)
        if found.memory.peak <= available:
            break
    return made, work, found, found.memory.peak <= available
