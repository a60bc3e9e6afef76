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
import torch

from prefiere.asked.language import count_of
from prefiere.console import Display, rough_time
from prefiere.estimate.cards import CALL, SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, Card, card_of, here, processor
from prefiere.estimate.simulate import Simulation, cache, simulate
from prefiere.estimate.workload import ROWS_AT_ONCE, Workload, longest, workload
from prefiere.models.source import Source, config_of
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.plan.rhythm import Rhythm
from prefiere.sample.packed_weights import SHARE_FOR_COPIES
from prefiere.settings import PolicyGradient, Settings
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.schedule import updates_per_epoch

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
    cache and logits. ``loading``: what reading the weights takes for a moment. ``fixed``: the rest. ``host``: of the
    processor's memory, besides, what one process has resting there (cpu_offload)."""

    weights: int
    trained: int
    update: int
    sampling: int
    loading: int
    fixed: int
    host: int = 0

    @property
    def peak(self) -> int:
        """The most that is needed at once: loading, updating and sampling take turns."""
        state = self.weights + self.trained
        return max(state + self.update, state + self.sampling, self.loading) + self.fixed


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run needs. seconds: of the whole run, updates and sampled answers. tokens: of the longest micro-batch.
    rhythm: updates between two validations, rounds of answers and checkpoints. overhead: the share of its work that is
    neither an update nor the reference."""

    memory: Memory
    seconds: float
    steps: int
    tokens: int
    rhythm: Rhythm
    overhead: float


def _stored(source: Source) -> int:
    """Bytes of the weights on disk, where they are on this disk."""
    return sum(p.stat().st_size for p in Path(source.base).glob("*.safetensors"))


def estimate(work: Workload, card: Card | None) -> RunEstimate:
    """Memory and time of a run on a card, or on this machine's processor where there is none."""
    groups, parts, tokens = longest(work)
    sim = simulate(work, groups, parts)
    share, units = work.device.sharing(work.plan.shard), sim.units
    update, weights = sim.update.peak - sim.trunk, -(-(sim.trunk + sim.reference) // share) + sim.beside
    if share > 1:  # a part of every gradient, a layer's in full, and what of the weights is put together
        update += -(-4 * sim.trained // share) + units.message + units.together
    state = -(-8 * sim.trained // share)  # two moments in fp32; gradients are in the update
    host = 0
    if share > 1 and card is not None and work.plan.settings.cpu_offload:
        resting = -(-4 * sim.trained // share)  # gradients, of which those of a layer are on their way
        host, weights, state = weights - sim.beside + resting + state, sim.beside, 0
        update += units.message // share - resting
    sampling = 0
    if work.rows:
        sampling = cache(work) + max(sim.prefill.peak, work.rows * _vocabulary(work) * DRAWING)
        sampling += sim.trunk if share > 1 else 0  # all weights are together while answers are drawn
    fixed = 0
    if card is None:
        fixed, update = CPU_FIXED, int(CPU_SLACK * update)
        if work.rows and sim.laid_out <= SHARE_FOR_COPIES * psutil.virtual_memory().available:
            sampling += sim.laid_out
    loading = weights + max(units.layer, units.ends) if share > 1 else weights
    if card is None:  # what is spread later is read whole
        loading = sim.weights + _stored(work.plan.policy)
    memory = Memory(weights, state, update, sampling, loading, fixed, host)
    here = sum(g.length for g in groups)
    seconds, overhead = _seconds(work, sim, card, here, tokens), work.rhythm.overhead(work.work, work.steps)
    return RunEstimate(memory, seconds, work.steps, here, work.rhythm, overhead)


def _vocabulary(work: Workload) -> int:
    config = config_of(work.plan.policy)
    return int(config.get_text_config().vocab_size)


def _seconds(work: Workload, sim: Simulation, card: Card | None, here: int, tokens: float) -> float:
    """Updates, passes without gradients (reference, validation), and answers, all as long as they may become."""
    s, plan = work.plan.settings, work.plan
    pace = (card.peak * SHARE_OF_PEAK, card.bandwidth * SHARE_OF_BANDWIDTH, CALL) if card else processor(plan.dtype)
    parts = (sim.update, sim.forwards, sim.prefill, sim.decode)
    update, forward, prefill, decode = (part.seconds(*pace) for part in parts)
    answers = prefill + s.max_new_tokens * decode
    seen = work.steps * tokens / here / work.teams  # micro-batches
    if isinstance(s, PolicyGradient):
        turns = -(-s.batch_size * s.num_generations // (ROWS_AT_ONCE * work.device.processes))
        passes = 4 if plan.method.critic else 3  # policy, reference, critic, reward
        return work.steps * turns * answers + seen * (passes * forward + s.num_ppo_epochs * update)

    def at(between: int) -> int:
        return -(-work.steps // between)

    each = here * work.teams
    total = seen * update + (1 + at(work.rhythm.validate)) * work.held_out / each * forward
    if plan.method.reference(s):
        once = min(work.steps, updates_per_epoch(len(work.lengths), s.batch_size)) * tokens + work.held_out
        total += once / each * forward
    return total + ((1 + at(work.rhythm.answer)) * answers if work.rows else 0)


def remedies(work: Workload) -> Iterator[tuple[str, Workload]]:
    """What to change, one after the other, each on top of the last, until a run fits; in words and as a workload."""
    most = int(work.lengths.max())
    for how in ("hybrid", "full"):
        wider = {"none": ("hybrid", "full"), "hybrid": ("full",), "full": ()}[work.plan.shard]
        changed = _taken(work, shard=how) if how in wider else None
        if changed is not None and changed.plan.shard == how:
            work = changed
            yield f"shard={how}", work
    while work.plan.budget > most:
        work = _changed(work, tokens_per_microbatch=max(most, work.plan.budget // 2))
        yield f"tokens_per_microbatch={work.plan.budget}", work
    if not work.plan.settings.gradient_checkpointing:
        work = _changed(work, gradient_checkpointing=True)
        yield "gradient_checkpointing=true", work
    spread = work.plan.shard != "none" and work.device.kind == "cuda"
    if spread and work.plan.adapter is None and not work.plan.settings.cpu_offload:
        work = _changed(work, cpu_offload=True)
        yield "cpu_offload=true", work
    fewer_bits = work.plan.adapter is not None and work.plan.scheme is None
    if fewer_bits and (changed := _taken(work, quantize="nf4")) is not None:  # what is spread is not quantized
        work = changed
        yield "quantize=nf4", work
    own = work.plan.policy.adapter is not None or work.plan.settings.peft_config is not None
    while work.plan.adapter is not None and not own and work.plan.settings.lora_r > 4:
        r = work.plan.settings.lora_r // 2
        work = _changed(work, lora_r=r)
        yield f"lora_r={r}", work
    while most > 128:
        most //= 2
        changed = _changed(work, max_length=most, tokens_per_microbatch=most)
        work = replace(changed, store=[_cut(g, most) for g in work.store])
        yield f"max_length={most}", work


def _taken(work: Workload, **values: Any) -> Workload | None:
    """The same data under other settings, or None where such a run is refused."""
    try:
        return _changed(work, **values)
    except ValueError:
        return None


def _changed(work: Workload, **values: Any) -> Workload:
    """The same data under other settings: the run is decided anew."""
    settings = work.plan.settings.model_copy(update=values)
    return replace(work, plan=resolve(settings, work.device, must_fit=False))


def _cut(group: PromptGroup, length: int) -> PromptGroup:
    """A group whose every answer with its prompt has at most ``length`` tokens."""
    room = max(1, length - len(group.prompt[: length // 2]))
    answers = tuple(c[:room] for c in group.completions)
    return PromptGroup(group.prompt[: length // 2], answers, tuple(np.ones(len(c), bool) for c in answers))


def until_it_fits(
    work: Workload, card: Card | None, available: int, tell: Callable[[str], None] = lambda text: None
) -> tuple[list[str], Workload, RunEstimate, bool]:
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


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a recipe needs on a device, after the ``changes`` under which it fits, and whether it then does.

    card: None for this machine's processor. available: bytes.
    """

    estimate: RunEstimate
    available: int
    card: Card | None
    changes: list[str]
    fits: bool
    device: Device
    shard: str

    def __str__(self) -> str:
        spread = [self.spread] if self.spread else []
        return "\n".join([*(f"set {change}" for change in self.changes), *spread, self.verdict, self.duration])

    __repr__ = __str__  # what a notebook shows of a cell

    @property
    def named(self) -> str:
        """The card's name, or this processor."""
        return self.card.name if self.card else "this processor"

    @property
    def spread(self) -> str | None:
        """What each of several GPUs holds, in words; None for one."""
        all_of_them, nodes = self.device.processes, self.device.nodes
        if all_of_them == 1:
            return None
        here = f"{all_of_them // nodes} on each of {nodes} nodes" if nodes > 1 else "on one node"
        parts = {
            "none": "each holds all weights and the optimizer (shard=none)",
            "full": "all of them share weights and optimizer (shard=full)",
            "hybrid": "those of a node share weights and optimizer, and each node holds all (shard=hybrid)",
        }
        resting = self.estimate.memory.host * all_of_them // nodes / 2**30
        off = f", which rest in {resting:.1f} GiB of each node's own memory (cpu_offload)" if resting else ""
        return f"{all_of_them} GPUs, {here}: {parts[self.shard]}{off}"

    @property
    def verdict(self) -> str:
        """Whether it fits, with the peak of its memory, in words."""
        held, gib = self.estimate.memory.peak, 2**30
        verdict = "fits" if self.fits else "does not fit, whatever is changed: choose a smaller model or a larger card"
        after = "with these changes it " if self.changes and self.fits else "it "
        on = f"each {self.named}" if self.device.processes > 1 else self.named
        return f"peak {held / gib:.2f} of {self.available / gib:.2f} GiB on {on}: {after}{verdict}"

    @property
    def pace(self) -> str:
        """How often it measures, and what that takes of its work, in words."""
        r, share = self.estimate.rhythm, self.estimate.overhead
        often = [f"every {n} updates" if n > 1 else "every update" for n in (r.validate, r.answer, r.save)]
        return (
            f"validates {often[0]}, answers {often[1]}, saves {often[2]}: {share:.0%} of its work is neither updates "
            "nor reference"
        )

    @property
    def duration(self) -> str:
        """How long it takes, in words."""
        e = self.estimate
        best = " at best, if none waits for another," if self.device.processes > 1 else ""
        updates = count_of(e.steps, "update")
        return f"about {rough_time(e.seconds)}{best} for {updates}, at most {e.tokens:,} tokens at once"


def forecast(settings: Settings, gpu: str | None, display: Display, *, gpus: int = 1, nodes: int = 1) -> Forecast:
    """What a recipe needs on a card by its name, on "cpu", or on this machine (None), and what to change until it fits.

    gpus: such cards, a process on each, on each of so many ``nodes``. Raises ValueError as the run would.
    """
    card, available = here() if gpu is None else (card_of(gpu), 0)
    if gpu is not None:
        available = card.memory - card.reserved if card else int(psutil.virtual_memory().available)
    bf16 = card.bf16 if card else Device.of(torch.device("cpu")).bf16
    threads = torch.get_num_threads()
    device = Device("cuda" if card else "cpu", available, bf16, threads, processes=gpus * nodes, nodes=nodes)
    changes, work, found, fits = until_it_fits(workload(settings, device, display), card, available, display.say)
    return Forecast(found, available, card, changes, fits, device, work.plan.shard)
