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
import psutil
from transformers import AutoConfig

from prefiere.estimate.cards import CALL, SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, Card, processor
from prefiere.estimate.simulate import ROWS, Simulation, Workload, cache, longest, simulate
from prefiere.methods import METHODS
from prefiere.models.adapter import Adapter
from prefiere.models.load import base_scheme
from prefiere.models.source import Source
from prefiere.objectives.preference import LOSSES
from prefiere.sample.packed_weights import SHARE
from prefiere.settings import DPO, PolicyGradient, Settings
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.schedule import updates_per_epoch
from prefiere.train.loop import every

DRAWING = 40
"""Bytes for each row and word while a token is drawn."""
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


def _stored(source: Source) -> int:
    """Bytes of the weights on disk, where they are on this disk."""
    return sum(p.stat().st_size for p in Path(source.base).glob("*.safetensors"))


def estimate(work: Workload, card: Card | None) -> Estimate:
    """Memory and time of a run on a card, or on this machine's processor where there is none."""
    s = work.settings
    groups, parts, tokens = longest(work)
    sim = simulate(work, groups, parts)
    update, weights = sim.update.peak - sim.weights, sim.weights + work.beside
    if not work.adapters and _needs_copy(s):
        weights += 4 * sim.policy
    sampling = 0
    if work.rows:
        sampling = cache(work) + max(sim.fill.peak, work.rows * _vocabulary(work) * DRAWING)
    fixed = 0
    if card is None:
        fixed, update = CPU_FIXED, int(CPU_SLACK * update)
        if work.rows and sim.copied <= SHARE * psutil.virtual_memory().available:
            sampling += sim.copied
    loading = weights + (_stored(work.source) if card is None else 0)
    state = 8 * sim.trained  # two moments in fp32; gradients are in the update
    memory = Memory(weights, state, update, sampling, loading, fixed)
    here = sum(g.length for g in groups)
    return Estimate(memory, _seconds(work, sim, card, here, tokens), work.steps, here)


def _vocabulary(work: Workload) -> int:
    config = AutoConfig.from_pretrained(work.source.base, trust_remote_code=work.source.trust)
    return int(config.get_text_config().vocab_size)


def _needs_copy(s: Settings) -> bool:
    return isinstance(s, PolicyGradient) or (
        isinstance(s, DPO) and LOSSES[s.loss_type].needs_reference and s.sample_steps != 0
    )


def _seconds(work: Workload, sim: Simulation, card: Card | None, here: int, tokens: float) -> float:
    """Updates, passes without gradients (reference, validation), and answers, all as long as they may become."""
    s = work.settings
    pace = (card.peak * SHARE_OF_PEAK, card.bandwidth * SHARE_OF_BANDWIDTH, CALL) if card else processor(work.compute)
    update, look, fill, step = (x.seconds(*pace) for x in (sim.update, sim.look, sim.fill, sim.step))
    answers = fill + s.max_new_tokens * step
    seen = work.steps * tokens / here  # micro-batches
    if isinstance(s, PolicyGradient):
        turns = -(-s.batch_size * s.num_generations // ROWS)
        passes = 4 if METHODS[s.method].critic else 3  # policy, reference, critic, reward
        return work.steps * turns * answers + seen * (passes * look + s.num_ppo_epochs * update)
    total = seen * update + _events(s.eval_steps, work.steps) * work.held / here * look
    if isinstance(s, DPO) and LOSSES[s.loss_type].needs_reference:
        once = min(work.steps, updates_per_epoch(len(work.lengths), s.batch_size)) * tokens + work.held
        total += once / here * look
    return total + (_events(s.sample_steps, work.steps) * answers if work.rows else 0)


def _events(setting: int | str, steps: int) -> int:
    step = every(setting, steps, 10)
    return steps // step + 1 if step else 0


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
