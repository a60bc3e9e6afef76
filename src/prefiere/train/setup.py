"""From settings to everything a loop needs: device, data, model, engine, with each automatic choice named."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prefiere.console import Display
from prefiere.data import formats
from prefiere.evaluate.judges import Judge
from prefiere.evaluate.sampled import AnswerEvaluator
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import decodes, ends, load_reward, room, skeleton
from prefiere.models.load import base_scheme, count_parameters, fingerprint, load_policy, load_tokenizer, no_dropout
from prefiere.models.reference import REWRITES_BASE, model_key
from prefiere.models.reward_model import RewardModel
from prefiere.models.reward_model import make_encoder as score_encoder
from prefiere.models.score_head import settle_padding
from prefiere.models.source import Source, generation_config, positions, resolve
from prefiere.models.trunk import Trunk
from prefiere.plan.choices import (
    Choice,
    choose_dtype,
    choose_learning_rate,
    choose_lora,
    choose_threads,
    critic_rate,
    describe_quantization,
    enough_memory,
    free_memory,
)
from prefiere.plan.examples import ExampleData, PromptData, make_encoder, read_data, truncation
from prefiere.plan.prompts import read_prompts
from prefiere.plan.roles import give_critic, load_reward_judge, opener
from prefiere.run import Run
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Rollouts, Sampling, Vocabulary
from prefiere.settings import PPO, PolicyGradient, Reward, Settings
from prefiere.tokens.encoder import decode, eos_ids_of
from prefiere.tokens.schedule import updates_per_epoch
from prefiere.train.engine import Engine
from prefiere.train.host import apply_products, choose_products, keep_few_kernels, keep_freed_memory
from prefiere.train.optimizer import make_optimizer, make_scheduler
from prefiere.world import World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Session:
    """One run's parts."""

    settings: Settings
    run: Run
    display: Display
    world: World
    tokenizer: PreTrainedTokenizerBase
    source: Source
    trunk: Trunk
    engine: Engine
    rollouts: Rollouts
    data: ExampleData | PromptData
    eos_ids: list[int]
    judge: Judge | None
    reward: Judge | None
    total_steps: int
    fingerprint: str
    choices: list[Choice] = field(default_factory=list)

    @cached_property
    def reference_key(self) -> dict[str, str]:
        """What the reference's log-probs depend on besides the data; asked for before the first update."""
        return model_key(self.trunk)

    @cached_property
    def reward_marks(self) -> dict[str, str]:
        """The fingerprint of each reward model by name; a function has none. Taken before anything is trained."""
        scorers = self.reward.scorers if self.reward is not None else {}
        return {name: m.fingerprint() for name, m in scorers.items() if isinstance(m, RewardModel)}

    def decode(self, tokens: np.ndarray) -> str:
        """The text of an answer."""
        return decode(self.tokenizer, tokens, skip_special=True)

    @property
    def compute(self) -> torch.dtype | None:
        return self.engine.compute


class Picked:
    """The automatic choices of a run: a resumed one repeats those that it recorded."""

    def __init__(self, recorded: dict[str, Any]):
        self.recorded, self.choices = recorded, list[Choice]()

    def __call__(self, choice: Choice) -> Any:
        """Note a choice; returns its value."""
        if choice.name in self.recorded:
            choice = Choice(choice.name, self.recorded[choice.name], "as when this run began")
        self.choices.append(choice)
        return choice.value

    def capped(self, settings: Settings, limit: int | None) -> Settings:
        """Settings whose max_length the model can take."""
        if limit is None or settings.max_length <= limit:
            return settings
        why = f"the model takes {limit} tokens"
        return settings.model_copy(update={"max_length": self(Choice("max_length", limit, why))})


def _no_second_adapter(settings: Settings) -> None:
    """Raise ValueError for settings that describe an adapter where the model is one already."""
    fields = type(settings).model_fields
    keys = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora", "peft_config"]
    given = [k for k in keys if getattr(settings, k) != fields[k].default] + ["lora"] * (settings.lora is False)
    if given:
        raise ValueError(
            f"{given[0]}: {settings.model} is an adapter already, and it is trained on as it is; leave it out"
        )


def prepare(
    settings: Settings,
    run: Run,
    display: Display,
    *,
    world: World,
    kind: formats.Kind,
    recorded: dict[str, Any],
) -> Session:
    """Read, load, choose. ``recorded`` holds a resumed run's automatic choices, which are used again."""
    source = resolve(settings.model, trust=settings.trust_remote_code)
    if settings.quantize != "none":
        source = replace(source, quantize=settings.quantize)
    scheme = base_scheme(source)
    if source.adapter:
        _no_second_adapter(settings)
    tokenizer = load_tokenizer(source)
    scores = isinstance(settings, Reward)
    shape = skeleton(source) if scores else None
    parameters = sum(p.numel() for p in shape.parameters()) if shape else count_parameters(source)
    reads_both_ways = shape is not None and not decodes(shape)
    device = world.device

    picked = Picked(recorded)
    settings = picked.capped(settings, positions(source) if not reads_both_ways else room(source, tokenizer))
    torch.set_num_threads(int(picked(choose_threads(device, parameters))))
    keep_freed_memory(device)
    keep_few_kernels(device)
    dtype = DTYPES[str(picked(choose_dtype(settings, device, parameters)))]
    lora = bool(source.adapter) or bool(picked(choose_lora(settings, parameters, free_memory(device), scheme)))
    display.note(
        enough_memory(settings, parameters, free_memory(device), dtype if lora else torch.float32, scheme, device)
    )
    rate = float(picked(choose_learning_rate(settings, lora, parameters)))
    budget = settings.tokens_per_microbatch
    if budget == "auto":
        start = 16384 if device.type == "cuda" else 4096
        budget = int(picked(Choice("tokens_per_microbatch", start, "halved whenever memory runs out")))
    judge = Judge.load(settings.judge, model=opener(settings, device, dtype, display.say)) if settings.judge else None
    eos_ids = ends(source, tokenizer) if reads_both_ways else eos_ids_of(generation_config(source), tokenizer)
    if scores:
        reading = {"template": settings.template, "on_bad": settings.on_bad}
        encoder = score_encoder(source, tokenizer, truncation(settings), both_ways=reads_both_ways, **reading)
    else:
        encoder = make_encoder(settings, tokenizer, eos_ids)
    data: ExampleData | PromptData
    if isinstance(settings, PolicyGradient):
        data = read_prompts(settings, tokenizer, eos_ids, display)
    else:
        data = read_data(settings, encoder, kind, display)
    torch.manual_seed(settings.seed)
    display.say(f"loading {settings.model} ({parameters / 1e6:,.1f}M parameters)")
    load = partial(load_reward, typed=getattr(encoder, "typed", False)) if scores else load_policy
    trunk, how = load(
        source,
        compute=dtype,
        adapter=adapter_of(settings) if lora and not source.adapter else None,
        device=device,
        gradient_checkpointing=settings.gradient_checkpointing,
        max_length=settings.max_length,
        packed={"packed": True, "padded": False}.get(str(recorded.get("rows", settings.attn))),
    )
    picked.choices.append(Choice("rows", "packed" if trunk.packed else "padded", how))
    apply_products(trunk, str(picked(choose_products(device, dtype))))
    if scores:
        display.note(settle_padding(trunk, tokenizer, eos_ids))
    if scheme is not None:
        picked.choices.append(describe_quantization(scheme, trunk.lm))
    mark = fingerprint(trunk.model)
    reward = None
    if isinstance(settings, PolicyGradient):
        reward = load_reward_judge(settings, trunk, dtype, scheme.name if scheme else "none", display.say)
        if isinstance(settings, PPO):
            picked.choices.append(give_critic(settings, trunk, reward))
        no_dropout(trunk)  # an adapter may have been trained with it, the policy's own or one that is mounted
    if settings.torch_compile:
        trunk.compile(dynamic=True)
    steps = settings.max_steps or max(
        1, round(settings.num_train_epochs * updates_per_epoch(len(data.train), settings.batch_size))
    )
    optimizer = make_optimizer(trunk, settings, rate, critic_rate(settings, rate))
    engine = Engine(
        trunk,
        optimizer,
        make_scheduler(optimizer, settings, steps),
        world=world,
        compute=None if dtype == torch.float32 else dtype,
        max_grad_norm=settings.max_grad_norm,
        budget=budget,
        adapt=settings.tokens_per_microbatch == "auto",
        notice=display.say,
    )
    rollouts = LocalRollouts(trunk.lm, Vocabulary.of(tokenizer, eos_ids), engine.compute)
    return Session(
        settings,
        run,
        display,
        world,
        tokenizer,
        source,
        trunk,
        engine,
        rollouts,
        data,
        eos_ids,
        judge,
        reward,
        steps,
        mark,
        picked.choices,
    )


def adapter_of(settings: Settings) -> Adapter:
    """The adapter that these settings describe."""
    if settings.peft_config is not None:
        made = Adapter.of(settings.peft_config)
        start = str(getattr(made.config, "init_lora_weights", "")).lower()
        if isinstance(settings, Reward) and start.startswith(REWRITES_BASE):
            raise ValueError("peft_config: a reward model's adapter starts at zero: leave init_lora_weights out")
        return made
    return Adapter.lora(
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_target_modules,
        dora=settings.use_dora,
        rslora=settings.use_rslora,
    )


def make_evaluator(session: Session) -> AnswerEvaluator:
    """What asks the session's sample prompts along the run, with the same seed each time."""
    s = session.settings
    return AnswerEvaluator(
        prompts=session.data.watched.ids,
        asked=session.data.watched.texts,
        decode=session.decode,
        rollouts=session.rollouts,
        sampling=Sampling(
            samples=s.samples_per_prompt,
            temperature=s.sample_temperature,
            max_new_tokens=s.max_new_tokens,
            seed=s.seed,
        ),
        budget=session.engine.budget,
        autocast=session.engine.compute,
        judge=session.judge,
        reward=session.reward,
    )


# -- the account of the surroundings ------------------------------------------------------------------------------
