"""GRPO: answers to one prompt against their mean, in units of their deviation (Shao et al. 2024)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from prefiere.algorithms.on_policy import OnPolicy
from prefiere.algorithms.rollout import Rollout
from prefiere.objectives.ppo import discounted_returns
from prefiere.objectives.reinforce import grpo_advantage
from prefiere.settings import GRPO
from prefiere.train.setup import Session


def build(session: Session) -> OnPolicy:
    """The algorithm of a GRPO run."""
    assert isinstance(session.settings, GRPO)
    return OnPolicy.of(session, partial(advantages, settings=session.settings))


def advantages(reward_CL: Tensor, rollout: Rollout, settings: GRPO) -> tuple[Tensor, Tensor]:
    """The return, centred, over the deviation of its prompt's answers, at each token; and returns: [C, L] each."""
    return_CL = discounted_returns(reward_CL, rollout.mask(), gamma=settings.gamma)
    return grpo_advantage(return_CL[:, 0], rollout.k)[:, None].expand_as(return_CL), return_CL
