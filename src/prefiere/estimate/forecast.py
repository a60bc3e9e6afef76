"""``prefiere estimate``: a recipe's own choices and data, without its weights, as a workload to be estimated."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch
from peft import PeftConfig

from prefiere.console import Display
from prefiere.estimate.cards import Card, card_of, here
from prefiere.estimate.estimate import Estimate, until_it_fits
from prefiere.estimate.meta_model import hollow
from prefiere.estimate.simulate import Workload
from prefiere.methods import METHODS
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import decodes, ends, room, skeleton
from prefiere.models.load import base_scheme, count_parameters, load_tokenizer
from prefiere.models.reward_model import make_encoder as score_encoder
from prefiere.models.source import Source, generation_config, positions, resolve
from prefiere.plan.choices import choose_dtype, choose_lora
from prefiere.plan.examples import make_encoder, read_data, truncation
from prefiere.plan.prompts import read_prompts
from prefiere.plan.roles import same
from prefiere.settings import PolicyGradient, Reward, Settings
from prefiere.tokens.encoder import eos_ids_of
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.schedule import members, updates_per_epoch
from prefiere.train.setup import DTYPES, adapter_of


def workload(settings: Settings, card: Card | None, available: int, display: Display) -> Workload:
    """Read a recipe's data and make the choices that its run would make on this device.

    Raises ValueError as the run would.
    """
    source = resolve(settings.model, trust=settings.trust_remote_code)
    if settings.quantize != "none":
        source = replace(source, quantize=settings.quantize)
    scheme = base_scheme(source)
    tokenizer = load_tokenizer(source)
    shape = skeleton(source) if isinstance(settings, Reward) else None
    both_ways = shape is not None and not decodes(shape)
    limit = room(source, tokenizer) if both_ways else positions(source)
    if limit is not None and limit < settings.max_length:
        settings = settings.model_copy(update={"max_length": limit})
    parameters = sum(p.numel() for p in shape.parameters()) if shape else count_parameters(source)
    if card is not None and settings.dtype == "auto":
        compute = torch.bfloat16 if card.bf16 else torch.float16
    else:
        compute = DTYPES[str(choose_dtype(settings, torch.device("cpu"), parameters).value)]
    lora = bool(source.adapter) or bool(choose_lora(settings, parameters, available, scheme).value)
    roles = 1
    if isinstance(settings, PolicyGradient):
        roles = 2 if METHODS[settings.method].critic else 1
    adapters = (adapter_of(settings),) * roles if lora else ()
    budget = settings.tokens_per_microbatch
    if budget == "auto":
        budget = 16384 if card is not None else 4096
    eos_ids = ends(source, tokenizer) if both_ways else eos_ids_of(generation_config(source), tokenizer)
    mounted: tuple[Adapter, ...] = ()
    beside = 0
    store: Any
    if isinstance(settings, PolicyGradient):
        asked = read_prompts(settings, tokenizer, eos_ids, display).train
        store, held = [_answered(p, settings) for p in asked.ids], 0
        first = members(len(asked), settings.batch_size, seed=settings.seed, step=0)
        prompts = sorted(len(asked.ids[i]) for i in first)
        mounted, beside = rewards(settings, source, lora, compute)
    else:
        encoder: Any = make_encoder(settings, tokenizer, eos_ids)
        if shape is not None:
            reading = {"template": settings.template, "on_bad": settings.on_bad}
            encoder = score_encoder(source, tokenizer, truncation(settings), both_ways=both_ways, **reading)
        data = read_data(settings, encoder, METHODS[settings.method].reads(settings), display)
        store = data.train
        prompts = sorted(len(p) for p in data.watched.ids)
        held = int(data.eval.lengths.sum()) if data.eval is not None else 0
    examples = len(store)
    steps = settings.max_steps or round(settings.num_train_epochs * updates_per_epoch(examples, settings.batch_size))
    packed = settings.attn != "padded"
    return Workload(
        settings, source, compute, adapters, store, int(budget), max(1, steps), packed, tuple(prompts), mounted, beside,
        held,
    )  # fmt: skip


def rewards(settings: PolicyGradient, own: Source, lora: bool, compute: torch.dtype) -> tuple[tuple[Adapter, ...], int]:
    """Reward models of a run: the adapters that are mounted on the policy's base, and the bytes of those beside it."""
    names = [settings.reward] if isinstance(settings.reward, str) else settings.reward
    mounted, beside = list[Adapter](), 0
    for name in names:
        if re.fullmatch(r"[\w.]+:\w+", name):  # a function
            continue
        source = resolve(name, trust=settings.trust_remote_code)
        made = (Adapter(PeftConfig.from_pretrained(source.adapter)),) if source.adapter else ()
        if lora and made and same(source.base, own.base) and source.quantize in ("none", own.quantize):
            mounted += made
            continue
        model = hollow(source, compute=compute, adapters=made, reward=True, checkpointing=False, packed=False)
        beside += sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    return tuple(mounted), beside


def _answered(prompt: np.ndarray, settings: PolicyGradient) -> PromptGroup:
    """A prompt with answers that are as long as they may become."""
    n, k = settings.max_new_tokens, settings.num_generations
    answer = np.zeros(n, np.int32)
    return PromptGroup(prompt, (answer,) * k, (np.ones(n, bool),) * k)


def forecast(
    settings: Settings, gpu: str | None, display: Display
) -> tuple[Workload, Estimate, int, Card | None, list[str], bool]:
    """What a recipe needs on a device (default: this machine's) and what to change until it fits.

    Returns the workload after the changes, its estimate, the bytes available, the device, the changes, and whether it
    then fits.
    """
    card, available = here()
    if gpu is not None:
        card = card_of(gpu)
        available = card.memory - card.reserved if card else int(psutil.virtual_memory().available)
    work = workload(settings, card, available, display)
    made, work, found, fits = until_it_fits(work, card, available, display.say)
    return work, found, available, card, made, fits
