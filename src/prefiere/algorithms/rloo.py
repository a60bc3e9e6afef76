"""RLOO: REINFORCE, each answer against the mean of the others to its prompt (Ahmadian et al. 2024)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from prefiere.algorithms.on_policy import OnPolicy
from prefiere.algorithms.rollout import Rollout
from prefiere.objectives.ppo import discounted_returns
from prefiere.objectives.reinforce import rloo_advantage
from prefiere.settings import RLOO
from prefiere.train.setup import Session


def build(session: Session) -> OnPolicy:
    """The algorithm of an RLOO run."""
    assert isinstance(session.settings, RLOO)
    return OnPolicy.of(session, partial(advantages, settings=session.settings))


def advantages(reward_CL: Tensor, rollout: Rollout, settings: RLOO) -> tuple[Tensor, Tensor]:
    """The answer's return less the mean of its prompt's other answers, at each token; and returns: [C, L] each."""
    return_CL = discounted_returns(reward_CL, rollout.mask(), gamma=settings.gamma)
    return rloo_advantage(return_CL[:, 0], rollout.k)[:, None].expand_as(return_CL), return_CL
