"""A run is decided here, and nowhere else: settings and a device in, a plan out. No weight is loaded.

`train.setup` builds from a plan, `estimate` simulates it, environment.json records it, and a resumed run gets it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from prefiere.asked.language import in_words
from prefiere.data import sources
from prefiere.data.splits import ReadFor
from prefiere.methods import METHODS, Method, Reads
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import decodes, room, skeleton
from prefiere.models.configuration import larger_class
from prefiere.models.load import base_scheme, count_parameters, load_tokenizer
from prefiere.models.quantize import Scheme
from prefiere.models.source import Source, config_of, find_model, positions, writes_text
from prefiere.plan import choices
from prefiere.plan.choices import Choice, Picked
from prefiere.plan.device import Device
from prefiere.plan.roles import (
    Roles,
    Scorer,
    critic_of,
    mounted_where_possible,
    reference_of,
    rewrites_base,
    scorers_of,
    servers_of,
)
from prefiere.plan.shared_rows import refuse_sharing
from prefiere.sample.server import Server
from prefiere.settings import PolicyGradient, Settings

T = TypeVar("T")
Shard = Literal["none", "full", "hybrid"]
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PlanError(ValueError):
    """Several things about a run that its user can put right, a line each."""


@dataclass(frozen=True)
class Plan:
    """What a run is.

    policy: where the model is. scheme: how its base is quantized (None: dense). adapter: the adapter that is trained,
    in its real configuration (None: every weight is). parameters: of the base. both_ways: it is an encoder, which reads
    an answer both ways. reads: what the data is read as. max_length: tokens of a row, as the model takes them. budget:
    tokens of a micro-batch; adapt: halved when memory runs out. rows: packed or padded; None: a check at load decides.
    shard: whether weights are spread over processes, all of them or a node's. learning_rate, critic_rate: peaks.
    servers: where its answers come from; none: this process. choices: what was decided for the user, and why. recorded:
    a resumed run's choices by name, which what is chosen later repeats as well. notes: what to know besides.
    """

    settings: Settings
    policy: Source
    scheme: Scheme | None
    adapter: Adapter | None
    roles: Roles
    parameters: int
    both_ways: bool
    dtype: torch.dtype
    max_length: int
    budget: int
    threads: int
    learning_rate: float
    critic_rate: float
    shard: Shard
    rows: bool | None
    choices: tuple[Choice, ...]
    servers: tuple[Server, ...]
    recorded: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        """The row of the table of methods."""
        return METHODS[self.settings.method]

    @property
    def reads(self) -> Reads:
        """The kind of record that the data is read as."""
        return self.method.reads(self.settings)

    @property
    def scores(self) -> bool:
        """Whether the model that is trained scores answers, and writes none."""
        return self.method.family == "reward"

    @property
    def adapt(self) -> bool:
        """Whether the budget is halved when memory runs out."""
        return self.settings.tokens_per_microbatch == "auto"

    @property
    def held(self) -> str:
        """How the base is quantized, by name; "none" where it is dense."""
        return self.scheme.name if self.scheme is not None else "none"

    @property
    def compute(self) -> torch.dtype | None:
        """The dtype of autocast; None for plain fp32."""
        return None if self.dtype == torch.float32 else self.dtype

    @property
    def saved_dtype(self) -> torch.dtype | None:
        """The dtype that a whole model is saved in, where one was asked for; None: that of its checkpoint."""
        return None if self.settings.dtype == "auto" else self.dtype

    def to_json(self) -> dict[str, Any]:
        """Plain values, for environment.json: what was decided, without the settings, which stand in recipe.yaml."""
        roles, adapted = self.roles, self.adapter is not None
        return {
            "method": self.settings.method,
            "policy": {"base": self.policy.base, "adapter": self.policy.adapter, "quantized": self.held},
            "adapter": self.adapter.to_json() if self.adapter is not None else None,
            "roles": {
                "reference": roles.reference,
                "critic": roles.critic,
                "rewards": [{"name": r.name, "where": r.where} for r in roles.rewards],
                "judges": [{"name": r.name, "where": r.where} for r in roles.judges],
            },
            "rollouts": [server.name for server in self.servers],
            "parameters": self.parameters,
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_length": self.max_length,
            "tokens_per_microbatch": self.budget,
            "threads": self.threads,
            "shard": self.shard,
            "learning_rate": self.learning_rate,
            "critic_learning_rate": self.critic_rate if roles.critic != "none" else None,
            "automatic": {
                "learning_rate": choices.automatic_rate(self.settings, adapted, self.parameters),
                "critic_learning_rate": choices.automatic_critic_rate(self.learning_rate),
            },
        }


def resolve(
    settings: Settings, device: Device, recorded: Mapping[str, Any] | None = None, *, must_fit: bool = True
) -> Plan:
    """Decide a run. ``recorded``: a resumed run's automatic choices by name, which are made again as they were.

    must_fit: a frozen base that is larger than the device's memory is an error; an estimate wants to know by how much.

    Raises what a user can put right: the error itself where there is one, else PlanError with a line for each.
    """
    trouble = Trouble()
    picked = Picked(recorded or {})
    trouble.tried(lambda: _data_is_there(settings.data, settings, "train"))
    trouble.tried(lambda: _data_is_there(settings.eval_data, settings, "eval"))
    trust, paid = settings.trust_remote_code, settings.reward if isinstance(settings, PolicyGradient) else ()
    rewards = trouble.tried(lambda: scorers_of(paid, trust)) or ()
    judges = trouble.tried(lambda: scorers_of(settings.judge or (), trust)) or ()
    policy = trouble.tried(lambda: _policy(settings))
    planned = None
    if policy is not None:
        planned = trouble.tried(lambda: _planned(settings, device, picked, policy, rewards, judges))
    if planned is not None and must_fit:
        planned = trouble.tried(partial(_that_fits, planned, device))
    trouble.end()
    assert planned is not None
    return planned


class Trouble:
    """What is wrong with a run, all of it, before anything is loaded."""

    def __init__(self) -> None:
        self.found: list[Exception] = []

    def tried(self, decide: Callable[[], T]) -> T | None:
        """What is decided; None, and the error noted, where it cannot be."""
        try:
            return decide()
        except (ValueError, OSError) as e:
            self.found.append(e)
            return None

    def end(self) -> None:
        """Raise what was found, if anything was."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            lines = "\n".join(f"  {e}" for e in self.found)
            raise PlanError(f"{len(self.found)} things to put right:\n{lines}")


@dataclass(frozen=True, slots=True)
class _Policy:
    """What is known of the model without its weights."""

    source: Source
    scheme: Scheme | None
    parameters: int
    both_ways: bool
    limit: int | None


def _policy(settings: Settings) -> _Policy:
    source = find_model(settings.model, trust=settings.trust_remote_code)
    if settings.quantize != "none":
        source = replace(source, quantize=settings.quantize)
    scheme = base_scheme(source)
    if source.adapter:
        _no_second_adapter(settings)
    if METHODS[settings.method].family != "reward":
        writes_text(source)
        return _Policy(source, scheme, count_parameters(source), False, positions(source))
    shape = skeleton(source)
    both_ways = not decodes(shape)
    limit = room(source, load_tokenizer(source)) if both_ways else positions(source)
    return _Policy(source, scheme, sum(p.numel() for p in shape.parameters()), both_ways, limit)


def _planned(
    settings: Settings,
    device: Device,
    picked: Picked,
    policy: _Policy,
    rewards: tuple[Scorer, ...],
    judges: tuple[Scorer, ...],
) -> Plan:
    source, scheme, parameters = policy.source, policy.scheme, policy.parameters
    rows = {"packed": True, "padded": False}.get(str(picked.recorded.get("rows", settings.attn)))
    refuse_sharing(settings, device.processes, config_of(source), packed=rows is not False and not policy.both_ways)
    max_length = settings.max_length
    if policy.limit is not None and max_length > policy.limit:
        max_length = int(picked(Choice("max_length", policy.limit, in_words("why.model_takes", n=policy.limit))))
    threads = int(picked(choices.choose_threads(device, parameters)))
    dtype = TORCH_DTYPES[str(picked(choices.choose_dtype(settings, device, parameters)))]
    adapter = None
    if source.adapter:
        adapter = Adapter.saved(source.adapter)
    elif picked(choices.choose_lora(settings, parameters, device.memory, scheme)):
        adapter = adapter_of(settings)
    rate = float(picked(choices.choose_learning_rate(settings, adapter is not None, parameters)))
    budget = settings.tokens_per_microbatch
    if budget == "auto":
        budget = int(picked(choices.choose_budget(settings, device, config_of(source), dtype)))
    spread = choices.choose_shard(settings, device, parameters, dtype, scheme, adapter)
    choices.refuse_offload(settings, spread)
    shard = picked.anew(spread)
    roles = Roles(
        reference_of(settings, source, adapter),
        critic_of(settings, adapter is not None),
        mounted_where_possible(rewards, source, scheme.name if scheme is not None else "none", adapter),
        judges,
    )
    return Plan(
        settings,
        policy=source,
        scheme=scheme,
        adapter=adapter,
        roles=roles,
        parameters=parameters,
        both_ways=policy.both_ways,
        dtype=dtype,
        max_length=max_length,
        budget=budget,
        threads=threads,
        learning_rate=rate,
        critic_rate=choices.critic_rate(settings, rate),
        shard=shard,
        rows=rows,
        choices=tuple(picked.choices),
        servers=servers_of(settings, adapter is not None),
        recorded=picked.recorded,
        notes=_left_out(source, adapter is not None or source.adapter is not None),
    )


def _left_out(source: Source, adapted: bool) -> tuple[str, ...]:
    """What a model can do that its run leaves out, in words."""
    whole = larger_class(config_of(source))
    if whole is None:
        return ()
    return (in_words("why.adapter_of_larger" if adapted else "why.part_of_larger", model=source.base, whole=whole),)


def _that_fits(plan: Plan, device: Device) -> Plan:
    """The plan, with what to know of its memory. Raises ValueError where a frozen base does not fit."""
    held = plan.dtype if plan.adapter is not None else torch.float32
    share = device.sharing(plan.shard) if device.kind != "cpu" else 1  # a processor reads all before it keeps a part
    note = choices.enough_memory(plan.settings, plan.parameters / share, device, held, plan.scheme)
    return replace(plan, notes=plan.notes if note is None else (*plan.notes, note))


def _no_second_adapter(settings: Settings) -> None:
    """Raise ValueError for settings that describe an adapter where the model is one already."""
    fields = type(settings).model_fields
    keys = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora", "peft_config"]
    given = [k for k in keys if getattr(settings, k) != fields[k].default] + ["lora"] * (settings.lora is False)
    if given:
        raise ValueError(
            f"{given[0]}: {settings.model} is an adapter already, and it is trained on as it is; leave it out"
        )


def named_modules(targets: str | list[str]) -> str | list[str]:
    """Plain names in one string ("k_proj", "q_proj,v_proj") as a list: PEFT takes a string for a pattern of whole
    paths. all-linear, and patterns, stay."""
    plain = isinstance(targets, str) and targets != "all-linear" and re.fullmatch(r"\w+(\s*,\s*\w+)*", targets)
    return [name.strip() for name in str(targets).split(",")] if plain else targets


def adapter_of(settings: Settings) -> Adapter:
    """The new adapter that these settings describe. Raises ValueError for one that cannot be trained so."""
    if settings.peft_config is not None:
        made = Adapter.of(settings.peft_config)
        if METHODS[settings.method].family == "reward" and rewrites_base(made):
            raise ValueError("peft_config: a reward model's adapter starts at zero: leave init_lora_weights out")
        return made
    return Adapter.lora(
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=named_modules(settings.lora_target_modules),
        dora=settings.use_dora,
        rslora=settings.use_rslora,
    )


def _data_is_there(name: str | None, settings: Settings, purpose: ReadFor) -> None:
    """Raise FileNotFoundError or DataError for data that is on no disk; the hub is asked when it is read."""
    split = settings.data_split if purpose == "train" else None
    if name is not None and (Path(name).expanduser().exists() or not sources.on_hub(name)):
        sources.find(name, METHODS[settings.method].reads(settings), split, purpose)
