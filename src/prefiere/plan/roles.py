"""The roles that reinforcement learning adds to the policy's: what rewards it, and the critic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from prefiere.evaluate.judges import Judge
from prefiere.models.classifier import normalisation
from prefiere.models.critic import attach_critic
from prefiere.models.reference import REWRITES_BASE
from prefiere.models.reward_model import RewardModel
from prefiere.models.source import resolve
from prefiere.models.trunk import POLICY, REWARD, Trunk
from prefiere.plan.choices import Choice
from prefiere.settings import PPO, PolicyGradient, Settings


def opener(
    settings: Settings, device: torch.device, dtype: torch.dtype, notice: Callable[[str], None]
) -> Callable[[str], RewardModel]:
    """How a run loads a reward model by name."""
    trust = settings.trust_remote_code
    return partial(RewardModel.load, device=device, dtype=dtype, trust=trust, notice=notice)


def load_reward_judge(
    settings: PolicyGradient, trunk: Trunk, dtype: torch.dtype, held: str, notice: Callable[[str], None]
) -> Judge:
    """What answers are rewarded by, each asked once before anything else. Raises ValueError where one does not work.

    Reward models of ours that are adapters on the policy's own base, as it is, are mounted on it, so that its weights
    are in memory once; any other is loaded beside it. ``held``: how that base is quantized, or "none".
    """
    beside = opener(settings, trunk.device, dtype, notice)
    own = resolve(settings.model, trust=settings.trust_remote_code)
    mounted: list[str] = []

    def load(name: str) -> RewardModel:
        source = resolve(name, trust=settings.trust_remote_code)
        shares = trunk.adapted and source.adapter is not None and same(source.base, own.base)
        if not (
            shares and source.quantize in ("none", held) and normalisation(source) is not None and _untouched(trunk)
        ):
            return beside(name)
        if source.quantize != held:
            notice(f"{name}: mounted on a base held as {held}, and not known to have been trained on one")
        mounted.append(name)
        role = REWARD if len(mounted) == 1 else f"{REWARD}_{len(mounted)}"
        return RewardModel.mounted(trunk, name, role, compute=dtype, trust=settings.trust_remote_code, notice=notice)

    return Judge.load(settings.reward, combine=settings.reward_ensemble, k=settings.reward_ensemble_k, model=load)


def same(one: str, other: str) -> bool:
    """Whether two names mean the same base: the same folder, or the same hub id."""
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))


def _untouched(trunk: Trunk) -> bool:
    """Whether the base is as published: some starts of an adapter take what they begin with out of it."""
    config = trunk.model.peft_config[POLICY]
    return not str(getattr(config, "init_lora_weights", "")).lower().startswith(REWRITES_BASE)


def give_critic(settings: PPO, trunk: Trunk, reward: Judge) -> Choice:
    """Attach the critic; it begins as the reward model where that has the policy's shape."""
    start = next((m for m in reward.scorers.values() if isinstance(m, RewardModel)), None)
    if settings.share_critic and trunk.adapted:
        raise ValueError(
            "share_critic has no effect with an adapter, whose base the critic shares already: leave it out"
        )
    shared = trunk.adapted or settings.share_critic
    why = attach_critic(trunk, share=settings.share_critic, start=start, seed=settings.seed)
    return Choice("critic", "on the policy's trunk" if shared else "a model of its own", why)
