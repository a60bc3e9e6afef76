"""PPO: advantages over a critic's values, several clipped passes over each rollout (Schulman et al. 2017)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from prefiere.algorithms.advantages import Advantages
from prefiere.algorithms.on_policy import OnPolicy
from prefiere.algorithms.policy_loss import Policy, Value
from prefiere.algorithms.rollout import Rollout
from prefiere.objectives.ppo import gae
from prefiere.settings import PPO
from prefiere.train.objective import Objective
from prefiere.train.setup import Session


def build(session: Session) -> OnPolicy:
    """The algorithm of a PPO run."""
    s = session.settings
    assert isinstance(s, PPO)
    return OnPolicy.of(session, partial(advantages, settings=s), partial(objectives, settings=s), critic=True)


def advantages(reward_CL: Tensor, rollout: Rollout, settings: PPO) -> tuple[Tensor, Tensor]:
    """GAE over the values that the critic gave at the rollout (Schulman et al. 2016, eq. 16), and returns: [C, L]."""
    value_CL = rollout.padded(rollout.tokens["value"])
    return gae(reward_CL, value_CL, rollout.mask(), gamma=settings.gamma, lam=settings.lam)


def objectives(rollout: Rollout, advantages: Advantages, step: int, settings: PPO) -> list[Objective]:
    """The critic's loss beside the policy's; in the first steps the critic's alone, where asked."""
    value = Value(rollout, advantages, settings.vf_coef, settings.cliprange_value)
    return [value] if step < settings.critic_warmup_steps else [Policy(rollout, advantages, settings), value]
