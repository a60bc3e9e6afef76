"""What a setting of "auto" comes to, with the reason in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from prefiere.asked.language import in_words
from prefiere.methods import METHODS
from prefiere.models.adapter import Adapter
from prefiere.models.quantize import Scheme, held
from prefiere.plan.device import Device
from prefiere.plan.roles import rewrites_base
from prefiere.settings import PPO, PolicyGradient, Settings

BYTES_FULL = 20
"""Bytes per parameter of full fine-tuning: fp32 weights, gradients, two AdamW moments, and the frozen reference."""
BYTES_CRITIC = 16
"""The same of a critic of its own, which has no reference."""
ACTIVATIONS = 2 * 2**30
"""Bytes for the activations of a micro-batch on a processor, which a larger one would pass without being faster
(docs/performance.md)."""
LORA_FROM = 1_000_000_000
SMALL_MODEL = 5_000_000
SMALLEST = 1_000_000
"""Parameters below which the automatic rate no longer grows: beyond them the rule was never measured, and where it was
tried, it took models apart (docs/tried.md)."""
USUAL_BATCH = 32
"""Pairs per update that the automatic rate of preferences is for. Of fewer, the rate goes with the root of their number
(Malladi et al. 2022, for Adam): the same data is then learnt as far, in more and smaller updates. Reward models and SFT
keep their rate, at which small updates do them no harm."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was decided for the user, and why."""

    name: str
    value: Any
    why: str


def as_it_began(name: str, recorded: Mapping[str, Any]) -> Choice:
    """A choice that a resumed run takes over from its beginning."""
    return Choice(name, recorded[name], in_words("why.began"))


class Picked:
    """The automatic choices of a run, each noted as it is made; a resumed run's are given back as it recorded them."""

    def __init__(self, recorded: Mapping[str, Any]):
        self.recorded, self.choices = recorded, list[Choice]()

    def anew(self, choice: Choice) -> Any:
        """Note a choice that a resumed run makes for the machine that it is on; returns its value."""
        self.choices.append(choice)
        return choice.value

    def __call__(self, choice: Choice) -> Any:
        """Note a choice; returns its value."""
        if choice.name in self.recorded:
            choice = as_it_began(choice.name, self.recorded)
        self.choices.append(choice)
        return choice.value


def choose_dtype(settings: Settings, device: Device, parameters: int) -> Choice:
    """The dtype of matrix products."""
    if settings.dtype != "auto":
        return Choice("dtype", settings.dtype, in_words("why.asked"))
    if device.kind == "cuda":
        if device.bf16:
            return Choice("dtype", "bfloat16", in_words("why.gpu_bf16"))
        return Choice("dtype", "float16", in_words("why.gpu_fp16"))
    if parameters < SMALL_MODEL:
        return Choice("dtype", "float32", in_words("why.small_dtype"))
    if device.bf16:
        return Choice("dtype", "bfloat16", in_words("why.cpu_bf16"))
    return Choice("dtype", "float32", in_words("why.no_bf16", device=device.kind))


def choose_threads(device: Device, parameters: int) -> Choice:
    """Processor threads of one process."""
    now = device.threads
    if os.environ.get("OMP_NUM_THREADS"):
        return Choice("threads", now, in_words("why.omp"))
    if device.kind == "cpu" and parameters < SMALL_MODEL:
        return Choice("threads", 1, in_words("why.small_threads"))
    return Choice("threads", now, in_words("why.cores"))


def activation_bytes(config: Any, dtype: torch.dtype, checkpointing: bool) -> int:
    """Bytes that the layers keep of one token between forward and backward, about, from a model's configuration.

    A layer keeps some 12 vectors of the hidden size (both norms, queries, keys and values before and after their
    rotation, what attention gives, both sums) and 5 of its inner size; checkpointing keeps a layer's input alone. A
    configuration that does not say its size keeps nothing.
    """
    text = config.get_text_config()
    hidden, layers = _largest(text, "hidden_size"), _largest(text, "num_hidden_layers")
    inner = (_largest(text, "intermediate_size") or 4 * hidden) * (_largest(text, "num_experts_per_tok") or 1)
    return layers * dtype.itemsize * (hidden if checkpointing else 12 * hidden + 5 * inner)


def _largest(config: Any, name: str) -> int:
    """A size of a configuration; of one for each layer, the largest. 0 where it has none."""
    value = getattr(config, name, None)
    sizes = value if isinstance(value, list | tuple) else [value]
    return max((int(size) for size in sizes if isinstance(size, int | float)), default=0)


def choose_budget(settings: Settings, device: Device, config: Any, dtype: torch.dtype) -> Choice:
    """Tokens of a micro-batch to begin with."""
    name, halved = "tokens_per_microbatch", in_words("why.halved")
    if device.kind == "cuda":
        return Choice(name, 16384, halved)
    each = activation_bytes(config, dtype, settings.gradient_checkpointing)
    room = min(ACTIVATIONS, device.memory // 4)
    found = next((n for n in (4096, 2048, 1024, 512) if n * each <= room), 256)
    return Choice(name, found, in_words("why.activations", size=f"{each / 2**20:.2g}", halved=halved))


def enough_memory(
    settings: Settings, parameters: float, device: Device, dtype: torch.dtype, scheme: Scheme | None
) -> str | None:
    """Raise ValueError, before anything is loaded, where a frozen base alone does not fit; says what would.

    parameters: of the base, or of the part of it that each process keeps.

    Returns what to know of a quantized base where there is no GPU, in words.
    """
    bits = scheme.bits + 0.6 if scheme is not None else 8 * dtype.itemsize  # scales and 16-bit ends included
    needed, gib, available = parameters * bits / 8, 2**30, device.memory
    if needed <= available:
        if scheme is None or device.kind != "cpu":
            return None
        return in_words("why.unpacked", scheme=scheme.name, size=f"{needed / gib:.1f}")
    smaller = [n for n, b in (("int8", 8.6), ("nf4", 4.6)) if b < bits and parameters * b / 8 < 0.8 * available]
    fits = in_words("error.size_that_fits", size=f"{0.8 * available * 8 / bits / 1e9:.1f}")
    if scheme is None and smaller:
        fits = in_words("error.bits_that_fit", scheme=smaller[0])
    sizes = {"needed": f"{needed / gib:.1f}", "free": f"{available / gib:.1f}"}
    key = "error.no_memory_and_no_gpu" if device.kind == "cpu" else "error.no_memory"
    raise ValueError(in_words(key, model=settings.model, held=scheme.name if scheme else dtype, fits=fits, **sizes))


def choose_shard(
    settings: Settings,
    device: Device,
    parameters: int,
    dtype: torch.dtype,
    scheme: Scheme | None,
    adapter: Adapter | None,
) -> Choice:
    """Whether each process holds all weights, or a part of them. adapter: what is trained (None: every weight).

    Raises ValueError for a run that was asked to be spread and cannot be.
    """
    asked, each = settings.shard, device.processes // device.nodes
    if device.processes == 1:
        return Choice("shard", "none", in_words("why.one_process"))
    if odd := _never_spread(settings, dtype, scheme, adapter):
        if asked in ("full", "hybrid"):
            raise ValueError(in_words("error.no_shard", asked=asked, why=odd))
        return Choice("shard", "none", odd)
    if asked == "hybrid" and device.nodes == 1:
        return Choice("shard", "full", in_words("why.one_node"))
    if asked != "auto":
        return Choice("shard", asked, in_words("why.asked"))
    needed = parameters * (BYTES_FULL if adapter is None else dtype.itemsize)
    if adapter is None and isinstance(settings, PPO) and not settings.share_critic:
        needed += parameters * BYTES_CRITIC
    room = device.memory if device.kind != "cpu" else device.memory // each
    sizes = {"needed": f"{needed / 2**30:.1f}", "room": f"{room / 2**30:.1f}"}
    if needed <= 0.8 * room and not settings.cpu_offload:
        return Choice("shard", "none", in_words("why.each_process", **sizes))
    if device.nodes > 1 and needed / each <= 0.8 * room:
        return Choice("shard", "hybrid", in_words("why.each_node", **sizes))
    return Choice("shard", "full", in_words("why.all_share", **sizes))


def refuse_offload(settings: Settings, shard: Choice) -> None:
    """Raise ValueError where ``cpu_offload`` is asked of weights that each process holds in full."""
    if settings.cpu_offload and shard.value == "none":
        raise ValueError(in_words("error.no_offload", why=shard.why))


def _never_spread(settings: Settings, dtype: torch.dtype, scheme: Scheme | None, adapter: Adapter | None) -> str | None:
    """Why the weights of a run cannot be spread over processes, in words; None where they can."""
    if scheme is not None:
        return in_words("why.packed_bits", bits=scheme.bits)
    if dtype == torch.float16:
        return in_words("why.fp16_scales")
    if isinstance(settings, PolicyGradient) and settings.rollouts:
        return in_words("why.server_weights")
    if adapter is not None and rewrites_base(adapter):
        return in_words("why.rewrites_base")
    return None


def describe_quantization(scheme: Scheme, model: PreTrainedModel) -> Choice:
    """What the loaded base really is, by how its weights are stored."""
    found = held(model)
    key = "why.quantized_before" if scheme.config is not None else "why.quantized_here"
    counts = {"layers": found.layers, "linear": found.linear, "bits": scheme.bits}
    return Choice("quantization", scheme.name, in_words(key, share=f"{found.share:.1%}", **counts))


def choose_lora(settings: Settings, parameters: int, available: int, scheme: Scheme | None = None) -> Choice:
    """Whether to train an adapter or every weight. Raises ValueError for every weight of a quantized base."""
    if scheme is not None:
        if settings.lora is False:
            raise ValueError(in_words("error.no_quantized_training", model=settings.model, scheme=scheme.name))
        return Choice("lora", True, in_words("why.frozen_base", bits=scheme.bits))
    if settings.peft_config is not None:
        return Choice("lora", True, in_words("why.peft_config"))
    if settings.lora != "auto":
        return Choice("lora", settings.lora, in_words("why.asked"))
    if parameters >= LORA_FROM:
        return Choice("lora", True, in_words("why.large", size=f"{parameters / 1e9:.1f}"))
    critic = isinstance(settings, PPO) and not settings.share_critic
    needed = parameters * (BYTES_FULL + (BYTES_CRITIC if critic else 0))
    if needed > 0.8 * available:
        sizes = {"needed": f"{needed / 2**30:.1f}", "free": f"{available / 2**30:.1f}"}
        return Choice("lora", True, in_words("why.too_large", **sizes))
    return Choice("lora", False, in_words("why.fits", size=f"{parameters / 1e6:,.1f}"))


def choose_learning_rate(settings: Settings, adapter: bool, parameters: int) -> Choice:
    """A peak learning rate for this method, size, and kind of training.

    Full fine-tuning starts from 1e-6 (preferences), 1e-5 (reward model) or 2e-5 (SFT) at 7B parameters and grows
    towards small models, as size^-0.7 (reward model: -0.5, SFT: -0.25), down to a million; an adapter takes ten times
    as much. Preferences in updates of fewer than `USUAL_BATCH` take less, as the root of their number.
    """
    if settings.learning_rate != "auto":
        return Choice("learning_rate", float(settings.learning_rate), in_words("why.asked"))
    key = "why.rate_of_adapter" if adapter else "why.rate_of_all"
    rate = automatic_rate(settings, adapter, parameters)
    return Choice("learning_rate", rate, in_words(key, size=f"{parameters / 1e6:,.0f}"))


def automatic_rate(settings: Settings, adapter: bool, parameters: int) -> float:
    """The peak learning rate that "auto" comes to, whether or not it was asked for."""
    at_7b, power = METHODS[settings.method].rate
    rate = min(at_7b * (7e9 / max(parameters, SMALLEST)) ** power * (10 if adapter else 1), 1e-3)
    if METHODS[settings.method].family == "preference":
        rate *= min(1.0, settings.batch_size / USUAL_BATCH) ** 0.5
    return float(f"{rate:.1e}")


def critic_rate(settings: Settings, rate: float) -> float:
    """A peak learning rate for the critic of ``ppo``."""
    asked = settings.critic_learning_rate if isinstance(settings, PPO) else "auto"
    return automatic_critic_rate(rate) if asked == "auto" else float(asked)


def automatic_critic_rate(rate: float) -> float:
    """The critic's peak learning rate that "auto" comes to beside the policy's, whether or not it was asked for."""
    return max(rate, min(5 * rate, 1e-3))
