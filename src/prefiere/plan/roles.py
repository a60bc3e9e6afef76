"""Which models a run holds besides its policy, and where each lives, decided from configurations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prefiere.asked.language import in_words
from prefiere.evaluate.judges import names_function
from prefiere.in_memory import is_given
from prefiere.methods import METHODS
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import is_classifier, normalisation
from prefiere.models.reference import REWRITES_BASE
from prefiere.models.source import ModelError, Source, find_model
from prefiere.sample.server import Server
from prefiere.settings import PPO, PolicyGradient, Settings

IDENTITIES = ("", "true", "gaussian", "eva")
"""Values of ``init_lora_weights`` under which a new adapter changes nothing yet."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """Something that scores answers: a function, or a reward model that is an adapter on the policy's trunk
    ("mounted"), or a model of its own ("beside"). adapter: of a model that is one, as it was saved."""

    name: str
    where: Literal["function", "mounted", "beside"]
    source: Source | None = None
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """The models of a run besides its policy.

    reference: the policy as it was before the run: the base without its adapter, a frozen adapter, a copy of the whole
    model, or none that is kept. critic: an adapter on the trunk, a head that shares the policy's states, or a model of
    its own. rewards: what a policy is trained on. judges: what scores its sampled answers besides.
    """

    reference: Literal["none", "base", "adapter", "copy"] = "none"
    critic: Literal["none", "adapter", "shared", "own"] = "none"
    rewards: tuple[Scorer, ...] = ()
    judges: tuple[Scorer, ...] = ()

    @property
    def mounted(self) -> tuple[Scorer, ...]:
        """Reward models that are adapters on the policy's base."""
        return tuple(r for r in self.rewards if r.where == "mounted")

    @property
    def beside(self) -> tuple[Scorer, ...]:
        """Reward models that are loaded on their own."""
        return tuple(r for r in (*self.rewards, *self.judges) if r.where == "beside")


def reference_of(
    settings: Settings, source: Source, adapter: Adapter | None
) -> Literal["none", "base", "adapter", "copy"]:
    """Where the policy as it was before the run lives. ``adapter``: the one that is trained, where one is.

    Log-probs of the data need none: the policy itself gives them before its first update. Sampled answers do.
    """
    method = METHODS[settings.method]
    if method.family == "reward":
        return "none"
    if source.adapter is not None or (adapter is not None and not starts_as_nothing(adapter)):
        return "adapter"
    live = method.family == "policy" or (method.family == "preference" and settings.sample_steps != 0)
    if not live:
        return "none"
    return "base" if adapter is not None else "copy"


def starts_as_nothing(adapter: Adapter) -> bool:
    """Whether a new adapter begins as the identity, so that the base alone is what the run starts from."""
    return str(getattr(adapter.config, "init_lora_weights", "")).lower() in IDENTITIES


def critic_of(settings: Settings, adapted: bool) -> Literal["none", "adapter", "shared", "own"]:
    """Where the critic lives. Raises ValueError for a setting that would have no effect."""
    if not isinstance(settings, PPO):
        return "none"
    if settings.share_critic and adapted:
        raise ValueError(
            "share_critic has no effect with an adapter, whose base the critic shares already: leave it out"
        )
    if adapted:
        return "adapter"
    return "shared" if settings.share_critic else "own"


def scorers_of(names: str | Sequence[str], trust: bool) -> tuple[Scorer, ...]:
    """What scores answers, by name: functions (``module:function``), and reward models, each on its own.

    Raises ModelError for what is no reward model.
    """
    found = []
    for name in [names] if isinstance(names, str) else names:
        if names_function(name) or is_given(name):
            found.append(Scorer(name, "function"))
            continue
        source = find_model(name, trust=trust)
        if not is_classifier(source):
            raise ModelError(in_words("met.is_no_reward_model", name=name))
        found.append(Scorer(name, "beside", source, Adapter.saved(source.adapter) if source.adapter else None))
    return tuple(found)


def mounted_where_possible(
    scorers: Sequence[Scorer], policy: Source, held: str, adapter: Adapter | None
) -> tuple[Scorer, ...]:
    """The same scorers; reward models of ours that are adapters on the policy's own base, as it is, are mounted on it,
    so that its weights are in memory once.

    held: how that base is quantized, or "none". adapter: what is trained on it; None: every weight.
    """

    def fits(s: Scorer) -> bool:
        if adapter is None or rewrites_base(adapter) or s.source is None or s.adapter is None:
            return False
        same = same_base(s.source, policy) and s.source.quantize in ("none", held)
        return same and normalisation(s.source) is not None

    return tuple(replace(s, where="mounted") if fits(s) else s for s in scorers)


def same_base(one: Source, other: Source) -> bool:
    """Whether two sources mean the same base: the same folder, or the same hub id at the same revision."""
    a, b = Path(one.base), Path(other.base)
    if a.is_dir() and b.is_dir():
        return a.samefile(b)
    return one.base == other.base and (one.revision or "main") == (other.revision or "main")


def servers_of(settings: Settings, adapted: bool) -> tuple[Server, ...]:
    """The rollout servers that answer in the place of the policy in this process; none for most runs.

    Raises ValueError for what is no address, and where every weight is trained while answers are asked for ahead.
    """
    named = settings.rollouts if isinstance(settings, PolicyGradient) else None
    found = tuple(Server.named(url) for url in ([named] if isinstance(named, str) else named or ()))
    if found and not adapted and isinstance(settings, PolicyGradient) and settings.max_staleness:
        raise ValueError(
            "max_staleness: this run trains every weight, and a server that takes them up has no old ones left for the "
            "answers that are on their way: set max_staleness=0, or lora=true"
        )
    return found


def rewrites_base(adapter: Adapter) -> bool:
    """Whether an adapter's start takes weights out of the base, which then is not as published."""
    return str(getattr(adapter.config, "init_lora_weights", "")).lower().startswith(REWRITES_BASE)
