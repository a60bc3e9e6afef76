"""From the rewards of whole answers to the credit of each token: what tells PPO, REINFORCE, RLOO and GRPO apart.

Suffixes: _C completions, _N their tokens in a row, _CL completions x tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefiere.algorithms.rollout import Rollout
from prefiere.objectives.masked import masked_moments, whiten
from prefiere.objectives.ppo import discounted_returns, gae, kl_k1, token_rewards
from prefiere.objectives.reinforce import grpo_advantage, reinforce_advantage, rloo_advantage
from prefiere.settings import PolicyGradient


@dataclass
class RewardScale:
    """What turns a reward model's number into the reward that is maximised.

    std: of the first rollout's rewards that differ at all (None before it, and where nothing is scaled); rewards are
    divided by it, so that the KL coefficient means the same whatever the unit of the reward.
    """

    std: float | None = None

    def __call__(self, reward_C: np.ndarray, ended_C: np.ndarray, settings: PolicyGradient) -> np.ndarray:
        """float64 [C]: scaled, clipped, and less the penalty where an answer never ended."""
        if self.std is None and settings.scale_rewards and reward_C.std() > 1e-6:
            self.std = float(reward_C.std())
        scaled = reward_C / (self.std or 1.0)
        if settings.reward_clip is not None:
            scaled = scaled.clip(-settings.reward_clip, settings.reward_clip)
        return np.asarray(scaled - settings.missing_eos_penalty * ~ended_C)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; ``RewardScale(**state)`` is the same."""
        return asdict(self)


@dataclass(frozen=True)
class Credit:
    """advantage_N, return_N: float32 [N], in scaled rewards; return_N is what a critic should have said."""

    advantage_N: np.ndarray
    return_N: np.ndarray


def assign(rollout: Rollout, score_C: np.ndarray, kl_coef: float, settings: PolicyGradient) -> Credit:
    """The credit of each token.

    score_C: float64 [C], from `RewardScale`. All methods see r_t = -kl_coef k1_t, plus the score at the last token.

    ppo: GAE over the critic's values. reinforce: the discounted rewards from the token on, less the mean return of all
    other answers. rloo: the answer's return, less the mean of its prompt's other answers. grpo: the same, centred and
    divided by the standard deviation of its prompt's answers.
    """
    mask = rollout.mask()
    kl_CL = kl_k1(rollout.padded(rollout.tokens["logp"]), rollout.padded(rollout.tokens["ref"]))
    reward_CL = token_rewards(torch.from_numpy(score_C), kl_CL, mask, kl_coef=kl_coef)
    if settings.method == "ppo":
        value_CL = rollout.padded(rollout.tokens["value"])
        advantage_CL, return_CL = gae(reward_CL, value_CL, mask, gamma=settings.gamma, lam=settings.lam)
    else:
        return_CL = discounted_returns(reward_CL, mask, gamma=settings.gamma)
        advantage_CL = torch.where(mask, _from_returns(return_CL, rollout.k, settings), 0.0)
    if settings.whiten_advantages:
        advantage_CL = torch.where(mask, whiten(advantage_CL, masked_moments(advantage_CL, mask)), 0.0)
    return Credit(rollout.flat(advantage_CL), rollout.flat(return_CL))


def _from_returns(return_CL: Tensor, k: int, settings: PolicyGradient) -> Tensor:
    whole_C = return_CL[:, 0]
    if settings.method == "rloo":
        return rloo_advantage(whole_C, k)[:, None]
    if settings.method == "grpo":
        return grpo_advantage(whole_C, k)[:, None]
    baseline_C = whole_C - reinforce_advantage(whole_C, masked_moments(whole_C))
    return return_CL - baseline_C[:, None]
