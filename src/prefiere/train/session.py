"""From settings to everything a loop needs: device, data, model, engine, with each automatic choice named."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from transformers import PreTrainedTokenizerBase

from prefiere.data import formats
from prefiere.data.audit import split_by_prompt
from prefiere.data.chat import Encoder, EncodeReport, Truncation, decode, eos_ids_of
from prefiere.data.groups import GroupStore
from prefiere.data.plan import updates_per_epoch
from prefiere.evaluate.compare import prompts_at, question
from prefiere.evaluate.judges import load_scorer
from prefiere.evaluate.policy import Sampler
from prefiere.models.load import (
    Adapter,
    Source,
    count_parameters,
    fingerprint,
    generation_config,
    load_policy,
    load_tokenizer,
    resolve,
)
from prefiere.models.roles import Trunk
from prefiere.run import Run
from prefiere.settings import SFT, Settings
from prefiere.train.engine import Engine
from prefiere.train.optim import (
    Choice,
    choose_dtype,
    choose_learning_rate,
    choose_lora,
    choose_threads,
    free_memory,
    make_optimizer,
    make_scheduler,
)
from prefiere.train.progress import Display

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_EVAL = 512
VERSIONS = ("prefiere", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


@dataclass
class Data:
    """Token ids to train and validate on, and the account of what became of every record."""

    train: GroupStore
    eval: GroupStore | None
    account: dict[str, Any]
    sample_prompts: list[np.ndarray]
    sample_texts: list[str]


@dataclass
class Session:
    """One run's parts."""

    settings: Settings
    run: Run
    display: Display
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    source: Source
    trunk: Trunk
    engine: Engine
    data: Data
    eos_ids: list[int]
    total_steps: int
    fingerprint: str
    choices: list[Choice] = field(default_factory=list)

    @property
    def compute(self) -> torch.dtype | None:
        return self.engine.compute


def make_accelerator(settings: Settings) -> Accelerator:
    """One for the run; raises ValueError for a tracker that is not installed."""
    installed = {str(getattr(t, "value", t)) for t in get_available_trackers()}
    for tracker in settings.report_to:
        if tracker not in installed:
            raise ValueError(f"report_to: {tracker} is not installed: pip install {tracker}")
    return Accelerator(
        cpu=not torch.cuda.is_available(), log_with=list(settings.report_to) or None, project_dir=settings.out
    )


def prepare(
    settings: Settings,
    run: Run,
    display: Display,
    *,
    accelerator: Accelerator,
    kind: formats.Kind,
    recorded: dict[str, Any],
) -> Session:
    """Read, load, choose. ``recorded`` holds a resumed run's automatic choices, which are used again."""
    source = resolve(settings.model, trust=settings.trust_remote_code)
    tokenizer = load_tokenizer(source)
    parameters = count_parameters(source)
    device = accelerator.device

    def decided(choice: Choice) -> Choice:
        if choice.name in recorded:
            choice = Choice(choice.name, recorded[choice.name], "as when this run began")
        choices.append(choice)
        return choice

    choices: list[Choice] = []
    torch.set_num_threads(int(decided(choose_threads(device, parameters)).value))
    dtype = DTYPES[str(decided(choose_dtype(settings, device, parameters)).value)]
    lora = bool(decided(choose_lora(settings, parameters, free_memory(device))).value)
    if source.adapter and not lora:
        lora = True
        choices.append(Choice("adapter", source.adapter, "the model is an adapter: it is trained on"))
    rate = float(decided(choose_learning_rate(settings, lora, parameters)).value)
    budget = settings.tokens_per_microbatch
    if budget == "auto":
        start = 16384 if device.type == "cuda" else 4096
        budget = int(decided(Choice("tokens_per_microbatch", start, "halved whenever memory runs out")).value)
    eos_ids = eos_ids_of(generation_config(source), tokenizer)
    data = read_data(settings, tokenizer, eos_ids, kind, display)
    adapter = _adapter(settings) if lora and not source.adapter else None
    torch.manual_seed(settings.seed)
    display.say(f"loading {settings.model} ({parameters / 1e6:,.1f}M parameters)")
    trunk, how = load_policy(
        source,
        compute=dtype,
        adapter=adapter,
        device=device,
        gradient_checkpointing=settings.gradient_checkpointing,
        max_length=settings.max_length,
        packed={"packed": True, "padded": False}.get(str(recorded.get("rows", settings.attn))),
    )
    choices.append(Choice("rows", "packed" if trunk.packed else "padded", how))
    mark = fingerprint(trunk.model)
    if settings.torch_compile:
        trunk.compile(dynamic=True)
    steps = settings.max_steps or max(
        1, round(settings.num_train_epochs * updates_per_epoch(len(data.train), settings.batch_size))
    )
    optimizer = make_optimizer(trunk, settings, rate)
    engine = Engine(
        trunk,
        optimizer,
        make_scheduler(optimizer, settings, steps),
        accelerator=accelerator,
        compute=None if dtype == torch.float32 else dtype,
        max_grad_norm=settings.max_grad_norm,
        budget=budget,
        adapt=settings.tokens_per_microbatch == "auto",
        notice=display.say,
    )
    return Session(
        settings, run, display, accelerator, tokenizer, source, trunk, engine, data, eos_ids, steps, mark, choices
    )


def _adapter(settings: Settings) -> Adapter:
    if settings.peft_config is not None:
        return Adapter.of(settings.peft_config)
    return Adapter.lora(
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_target_modules,
        dora=settings.use_dora,
        rslora=settings.use_rslora,
    )


# -- data ---------------------------------------------------------------------------------------------------------


def read_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, eos_ids: list[int], kind: formats.Kind, display: Display
) -> Data:
    """Read, tokenize and split by prompt. Raises ValueError where nothing is left."""
    k = 2 if kind == "pairs" else 1

    encoder = Encoder(
        tokenizer,
        Truncation(settings.max_length, settings.max_prompt_length, settings.max_completion_length),
        eos_ids=eos_ids,
        completion_only=not isinstance(settings, SFT) or settings.completion_only_loss,
        template=settings.template,
        on_bad=settings.on_bad,
    )

    def encode(name: str, split: str | None) -> tuple[GroupStore, dict[str, Any]]:
        source: Any = formats.read(name, kind=kind, split=split, columns=settings.columns, on_bad=settings.on_bad)
        report = EncodeReport()
        store = GroupStore.build(_counted(encoder.encode(source, report), display, f"reading {name}"), k)
        if not len(store):
            raise ValueError(f"{name} holds no example to learn from ({source.counts}; {'; '.join(report.lines())})")
        return store, {"data": name, "read": source.describe(), "tokens": report.to_dict()}

    store, account = encode(settings.data, settings.data_split)
    account = {"train": account}
    if settings.eval_data is not None:
        train, held = store, encode(settings.eval_data, None)
        account["eval"] = held[1]
        validation: GroupStore | None = held[0]
    elif settings.eval_size:
        train_at, eval_at = split_by_prompt(store.prompt_keys, _held_out(settings.eval_size, len(store)), settings.seed)
        if not len(train_at) or not len(eval_at):
            raise ValueError(
                f"{settings.data} has too few distinct prompts to hold some out: set eval_size=0, or give eval_data"
            )
        train, validation = store.select(train_at), store.select(eval_at)
    else:
        train, validation = store, None
    account["examples"] = {"train": len(train), "eval": len(validation) if validation else 0}
    account["prompts"] = {
        "train": len(np.unique(train.prompt_keys)),
        "eval": len(np.unique(validation.prompt_keys)) if validation else 0,
    }
    account["fingerprint"] = {"train": train.fingerprint(), "eval": validation.fingerprint() if validation else None}
    account["eval_sources"] = [g.source for g in validation] if validation else []
    prompts, texts = _sample_prompts(settings, validation or train, encoder)
    display.say(f"{len(train):,} examples to train on, {account['examples']['eval']:,} held out by prompt")
    return Data(train, validation, account, prompts, texts)


def _held_out(size: float, n: int) -> int:
    return int(size) if size >= 1 else max(1, min(MAX_EVAL, round(size * n)))


def _counted(groups: Iterable[Any], display: Display, name: str) -> Iterable[Any]:
    with display.console.status(name) as status:
        for i, group in enumerate(groups, 1):
            if i % 1000 == 0:
                status.update(f"{name}: {i:,} examples")
            yield group


def _sample_prompts(settings: Settings, store: GroupStore, encoder: Encoder) -> tuple[list[np.ndarray], list[str]]:
    """Distinct prompts to answer along the run, and what a person reads of them: from a file, or the first held-out
    ones."""
    if isinstance(settings.sample_prompts, str):
        asked = [r.prompt for r in formats.read(settings.sample_prompts, kind="prompts")]
        return encoder.encode_prompts(asked), [question(p) for p in asked]
    _, first = np.unique(store.prompt_keys, return_index=True)
    if isinstance(settings, SFT) and not settings.completion_only_loss:
        first = np.arange(len(store))  # what is stored as the prompt is the first token of each text
    groups = [store[int(i)] for i in np.sort(first)[: settings.sample_prompts]]
    data = settings.eval_data or settings.data
    split = None if settings.eval_data else settings.data_split
    texts = prompts_at([g.source for g in groups], data, split=split, columns=settings.columns)
    prompts = [g.prompt for g in groups]
    if isinstance(settings, SFT) and not settings.completion_only_loss:
        prompts = [encoder.encode_prompts([texts[g.source]])[0] if texts.get(g.source) else g.prompt for g in groups]
    return prompts, [question(texts[g.source]) if g.source in texts else encoder.decode(g.prompt) for g in groups]


def make_sampler(session: Session) -> Sampler:
    """Answers to the session's sample prompts, the same at every step."""
    s = session.settings
    pad = session.tokenizer.pad_token_id
    return Sampler(
        prompts=session.data.sample_prompts,
        texts=session.data.sample_texts,
        decode=lambda ids: decode(session.tokenizer, ids, skip_special=True),
        eos_ids=session.eos_ids,
        samples=s.samples_per_prompt,
        temperature=s.sample_temperature,
        max_new_tokens=s.max_new_tokens,
        seed=s.seed,
        budget=session.engine.budget,
        judge=load_scorer(s.judge) if s.judge else None,
        judge_name=s.judge or "",
        forbidden=[pad] if pad is not None and pad not in session.eos_ids else [],
    )


# -- the account of the surroundings ------------------------------------------------------------------------------


def environment(session: Session) -> dict[str, Any]:
    """What environment.json says: versions, hardware, choices."""
    versions: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = session.accelerator.device
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "world_size": session.accelerator.num_processes,
        "platform": platform.platform(),
        "command": " ".join(["prefiere", *sys.argv[1:]]) if Path(sys.argv[0]).name.startswith("prefiere") else None,
        "reference": session.fingerprint,
        "parameters": {
            "all": sum(p.numel() for p in session.trunk.parameters()),
            "trained": sum(p.numel() for p in session.engine.parameters),
        },
        "choices": [{"name": c.name, "value": c.value, "why": c.why} for c in session.choices],
        "pid": os.getpid(),
    }
