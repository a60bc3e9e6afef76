"""REINFORCE: each token is credited with the rewards that follow it, less a baseline (Williams 1992).

Its one pass over a rollout runs through the clipped loss, at a ratio of 1: there the gradient is that of the plain
estimator, -A grad log pi (`objectives.reinforce.policy_gradient_loss`).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from prefiere.algorithms.on_policy import OnPolicy
from prefiere.algorithms.rollout import Rollout
from prefiere.objectives.masked import masked_moments
from prefiere.objectives.ppo import discounted_returns
from prefiere.objectives.reinforce import reinforce_advantage
from prefiere.settings import Reinforce
from prefiere.train.setup import Session


def build(session: Session) -> OnPolicy:
    """The algorithm of a REINFORCE run."""
    assert isinstance(session.settings, Reinforce)
    return OnPolicy.of(session, partial(advantages, settings=session.settings))


def advantages(reward_CL: Tensor, rollout: Rollout, settings: Reinforce) -> tuple[Tensor, Tensor]:
    """The discounted rewards from the token on, less the mean return of all other answers; and returns: [C, L] each.

    ``baseline: none`` subtracts nothing, which is the plain estimator of the policy gradient theorem.
    """
    return_CL = discounted_returns(reward_CL, rollout.mask(), gamma=settings.gamma)
    if settings.baseline == "none":
        return return_CL, return_CL
    whole_C = return_CL[:, 0]
    baseline_C = whole_C - reinforce_advantage(whole_C, masked_moments(whole_C))
    return return_CL - baseline_C[:, None], return_CL
