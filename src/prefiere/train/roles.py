"""The roles that reinforcement learning adds, put where the plan says: what rewards the policy, and the critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from prefiere.evaluate.functions import Answered, Function
from prefiere.evaluate.judges import Judge
from prefiere.models.critic import attach_critic
from prefiere.models.reward_model import RewardModel
from prefiere.models.trunk import REWARD, Trunk
from prefiere.plan.choices import Choice
from prefiere.plan.plan import Plan
from prefiere.settings import PPO, PolicyGradient
from prefiere.train.host import apply_products


def opener(
    plan: Plan, device: torch.device, products: Choice, notice: Callable[[str], None]
) -> Callable[[str], RewardModel]:
    """How a run loads a reward model that stands on its own, by name. products: see `choose_products`."""
    trust = plan.settings.trust_remote_code

    def load(name: str) -> RewardModel:
        model = RewardModel.load(name, device=device, dtype=plan.dtype, trust=trust, notice=notice)
        apply_products(model.trunk, str(products.value))
        return model

    return load


def load_rewards(
    plan: Plan,
    trunk: Trunk,
    beside: Callable[[str], RewardModel],
    notice: Callable[[str], None],
    functions: Mapping[str, Function],
    example: Answered | None,
) -> Judge:
    """What answers are rewarded by, each asked once before anything else. beside: loads one that stands on its own.

    Raises ValueError where one does not work.
    """
    settings = plan.settings
    assert isinstance(settings, PolicyGradient)
    trust = settings.trust_remote_code
    roles = {r.name: REWARD if i == 0 else f"{REWARD}_{i + 1}" for i, r in enumerate(plan.roles.mounted)}
    trained_on = {r.name: r.source.quantize for r in plan.roles.mounted if r.source is not None}

    def load(name: str) -> RewardModel:
        if name not in roles:
            return beside(name)
        if trained_on[name] != plan.held:
            notice(f"{name}: mounted on a base held as {plan.held}, and not known to have been trained on one")
        return RewardModel.mounted(trunk, name, roles[name], compute=plan.dtype, trust=trust, notice=notice)

    return Judge.load(
        settings.reward,
        combine=settings.reward_ensemble,
        k=settings.reward_ensemble_k,
        weights=settings.reward_weights,
        model=load,
        functions=functions,
        example=example,
    )


def give_critic(plan: Plan, trunk: Trunk, reward: Judge) -> Choice:
    """Attach the critic; it begins as the reward model where that has the policy's shape."""
    assert isinstance(plan.settings, PPO)
    start = next((m for m in reward.scorers.values() if isinstance(m, RewardModel)), None)
    why = attach_critic(trunk, share=plan.settings.share_critic, start=start, seed=plan.settings.seed)
    return Choice("critic", "a model of its own" if plan.roles.critic == "own" else "on the policy's trunk", why)
